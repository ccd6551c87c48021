"""What the training loop needs of an engine: answer prompts for a whole population, and take an update."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from eggroll_rl.config import SamplingConfig
from eggroll_rl.population import Population
from eggroll_rl.update import Update

Prompt = str | list[dict[str, str]]  # plain text, or chat messages


class Completion(NamedTuple):
    """One answer: its text without special end tokens, its token ids, and whether it ended by itself."""

    text: str
    token_ids: tuple[int, ...]
    finished: bool


class Engine(Protocol):
    """A model that answers for all members of a population and learns from their fitness."""

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, population: Population | None = None
    ) -> list[list[Completion]]:
        """Answers as ``[member][prompt]``; without a population one row, of the unperturbed model."""
        ...

    def apply(self, update: Update) -> float:
        """Take one optimizer step and return the RMS of the parameter step."""
        ...

    def save(self, folder: Path) -> None:
        """Write the unperturbed model as an ordinary Hugging Face folder, tokenizer included."""
        ...
