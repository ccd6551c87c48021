"""What the training loop needs of an engine: answer prompts for a whole population, and take an update."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Protocol, Self

from torch import Tensor

from eggroll_rl.config import Recipe, SamplingConfig, Weights
from eggroll_rl.es.population import Population
from eggroll_rl.es.rollout import Completion, Foretold, Prompt, Saturation
from eggroll_rl.es.update import Update

if TYPE_CHECKING:
    from eggroll_rl.models.blueprint import Blueprint


class Engine(Protocol):
    """A model that answers for all members of a population and learns from their fitness; a context that closes it.

    Engines inherit from it, for what they need not say themselves.

    Attributes:
        holds: what the recipe's ``weights`` may be.
        has_processes: whether it starts processes of its own, so that no launcher may start it several times.
        rules: the ``optimizer.name`` that it learns by.
        reads_text: whether it has ``read``, for recipes with ``text``.
        replayed_by: the name of the engine in which a run's updates are replayed, on any machine; None: its own.
        batch_bytes: the ``engine.batch_bytes`` with which another start divides a population into the same batches, and
            so gives to the bit the same answers; None: the engine makes no batches. Replicas are set that of the first.
    """

    holds: ClassVar[tuple[Weights, ...]] = ("float",)
    has_processes: ClassVar[bool] = False
    rules: ClassVar[tuple[str, ...]] = ("sgd", "adam", "adamw")
    reads_text: ClassVar[bool] = False
    replayed_by: ClassVar[str | None] = None
    batch_bytes: int | None = None

    @classmethod
    def check_model(cls, recipe: Recipe, blueprint: "Blueprint") -> None:
        """Find out whether the engine can run and evolve the recipe's model, wherever the run will be.

        Raises:
            UsageError: it cannot.
        """
        return None

    @classmethod
    def check(cls, recipe: Recipe, blueprint: "Blueprint") -> None:
        """Find out whether it can do so here.

        Raises:
            UsageError: it cannot, or what it needs is not installed.
        """
        return None

    @classmethod
    def from_recipe(cls, recipe: Recipe, blueprint: "Blueprint | None" = None) -> Self:
        """Load the recipe's model, once and in this process."""
        raise TypeError(f"{cls.__name__} is not made from a recipe alone")

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingConfig,
        population: Population | None = None,
        members: range | None = None,
    ) -> list[list[Completion]]:
        """Answers as ``[member][prompt]``; without a population one row, of the unperturbed model, whose weights are
        their averages where the recipe wants these.

        ``members``: only these of the population; what one answers does not depend on who else is asked.
        """
        ...

    def read(
        self,
        byte_ST: Tensor,
        state: Tensor | None = None,
        population: Population | None = None,
        members: range | None = None,
    ) -> Foretold:
        """Foretell all bytes but the first of each of S streams, uint8 [S, T + 1], from ``state`` on; None: from the
        beginning of a document.

        Without a population the unperturbed model reads, and has a row for each stream. Of a population, N / S members
        in a row read the same stream. ``members``: only these, of whom ``state`` is; the first is even.
        """
        raise TypeError(f"{type(self).__name__} reads no text")

    def saturation(self, byte_ST: Tensor) -> Saturation:
        """What of the unperturbed model of integers is as large as int8 holds, where it reads such text."""
        return Saturation({}, {})

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
        """SHA-256 of the unperturbed model's parameters, averages or fp32 masters where it has them, in
        hexadecimal."""
        ...

    def save(self, folder: Path) -> None:
        """Write the unperturbed model as an ordinary Hugging Face folder, tokenizer included."""
        ...

    def close(self) -> None:
        """Give back memory, processes and places; nothing else may be asked of it afterwards."""
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
