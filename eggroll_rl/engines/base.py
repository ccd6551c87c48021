"""What the training loop needs of an engine: answer prompts for a whole population, and take an update."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from eggroll_rl.config import SamplingConfig
from eggroll_rl.es.population import Population
from eggroll_rl.es.rollout import Completion, Prompt
from eggroll_rl.es.update import Update


class Engine(Protocol):
    """A model that answers for all members of a population and learns from their fitness."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingConfig,
        population: Population | None = None,
        members: range | None = None,
    ) -> list[list[Completion]]:
        """Answers as ``[member][prompt]``; without a population one row, of the unperturbed model.

        ``members``: only these of the population; what one answers does not depend on who else is asked.
        """
        ...

    def apply(self, update: Update) -> float:
        """Take one optimizer step and return the RMS of the parameter step."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Master weights and optimizer state, flat (see ``Learner.state_dict``)."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what another engine's ``state_dict`` gave."""
        ...

    def weights_hash(self) -> str:
        """SHA-256 of the unperturbed model's parameters, fp32 masters where it has them, in hexadecimal."""
        ...

    def save(self, folder: Path) -> None:
        """Write the unperturbed model as an ordinary Hugging Face folder, tokenizer included."""
        ...
