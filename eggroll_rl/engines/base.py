"""The protocol of engines: answer prompts (or read text) for a whole population, and take an update."""

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

    Engines inherit from this class; methods with a body here are optional.

    Attributes:
        holds: the values of the recipe's ``weights`` that it can run.
        rounds_activations: whether it rounds activations to int8 where weights are int8. A run's model is then saved
            with a configuration that asks other servers to do the same.
        has_processes: whether it starts processes of its own, so that no launcher may start it several times.
        rules: the values of ``optimizer.name`` by which it can learn.
        whitens: whether it has ``measure_whitening``, which recipes with ``population.whitening`` need, and keeps what
            that measured in its state.
        reads_text: whether it has ``read``, which recipes with ``text`` need.
        replayed_by: name of the engine in which its runs are replayed, on any machine; None: the engine itself.
        batch_bytes: bytes that the rows of a batch take at most; None: it makes no batches. A run records the value,
            and all replicas and a resumed run use it: the same batches give the same answers, to the bit.
    """

    holds: ClassVar[tuple[Weights, ...]] = ("float",)
    rounds_activations: ClassVar[bool] = False
    has_processes: ClassVar[bool] = False
    rules: ClassVar[tuple[str, ...]] = ("sgd", "adam", "adamw")
    whitens: ClassVar[bool] = False
    reads_text: ClassVar[bool] = False
    replayed_by: ClassVar[str | None] = None
    batch_bytes: int | None = None

    @classmethod
    def check_model(cls, recipe: Recipe, blueprint: "Blueprint") -> None:
        """Check that the engine can run and evolve the recipe's model, on whatever machine.

        Raises:
            UsageError: it cannot.
        """
        return None

    @classmethod
    def check(cls, recipe: Recipe, blueprint: "Blueprint") -> None:
        """Check that it can do so on this machine.

        Raises:
            UsageError: it cannot, or what it needs is not installed.
        """
        return None

    @classmethod
    def from_recipe(cls, recipe: Recipe, blueprint: "Blueprint | None" = None) -> Self:
        """An engine with the recipe's model, loaded once, in this process."""
        raise TypeError(f"{cls.__name__} is not made from a recipe alone")

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingConfig,
        population: Population | None = None,
        members: range | None = None,
    ) -> list[list[Completion]]:
        """Answer every prompt with every member; returns ``[member][prompt]``.

        Args:
            population: whose members answer; None: the unperturbed model answers, as one row. If the recipe has
                ``optimizer.average``, this model has the averaged weights.
            members: only these members; None: all. A member's answers do not depend on which others are asked.
        """
        ...

    def read(
        self,
        byte_ST: Tensor,
        state: Tensor | None = None,
        population: Population | None = None,
        members: range | None = None,
    ) -> Foretold:
        """Foretell all bytes but the first of each of S streams.

        Args:
            byte_ST: uint8 [S, T + 1].
            state: the recurrent state of each row, as an earlier call returned it; None: that before a document.
            population: whose members read, N / S consecutive members each stream; None: the unperturbed model reads
                every stream.
            members: only these members, whose rows ``state`` has; the first is even. None: all.
        """
        raise TypeError(f"{type(self).__name__} reads no text")

    def saturation(self, byte_ST: Tensor) -> Saturation:
        """How much of the unperturbed model of integers is saturated where it reads this text, uint8 [S, T + 1]."""
        return Saturation({}, {})

    def measure_whitening(self, prompts: Sequence[Prompt], sampling: SamplingConfig) -> Mapping[str, Tensor]:
        """What whitens the noise of each evolved matrix (see ``es.whitening``), measured where the unperturbed model
        answers these prompts, as entries for ``load_state_dict``: the noise is as it was until these are loaded with
        the rest of the state."""
        raise TypeError(f"{type(self).__name__} has plain noise alone")

    def apply(self, update: Update) -> float:
        """Take one optimizer step and return the RMS of the parameter step."""
        ...

    def state_dict(self) -> Mapping[str, Tensor]:
        """Master weights and optimizer state, flat (see ``Learner.state_dict``), as they are when they are read: a
        ``Tensors`` is read in pieces."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state_dict`` of this or another engine returned."""
        ...

    def weights_hash(self) -> str:
        """SHA-256 in hexadecimal of the unperturbed model's parameters: averages if it has them, else fp32 masters,
        else the weights themselves."""
        ...

    def save(self, folder: Path) -> None:
        """Write the unperturbed model as an ordinary Hugging Face folder, tokenizer included."""
        ...

    def close(self) -> None:
        """Free memory, processes and places in a cluster. No other method may be called afterwards."""
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
