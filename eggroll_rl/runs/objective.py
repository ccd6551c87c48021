"""What a run learns from, as its loop sees it: numbers for a population, and a measure of the model itself.

Legend: N members, P prompts (of text: one column).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from eggroll_rl.engines.base import Engine
from eggroll_rl.es.population import Population
from eggroll_rl.runs.clock import Stopwatch


class Judged(NamedTuple):
    """What a population did: scores [N, P], NaN where there is none; numbers for the generation's record, and samples
    of what the members did for people to read."""

    scores_NP: Tensor
    metrics: dict[str, Any]
    samples: list[dict[str, Any]]


class Measurement(Protocol):
    """How good the unperturbed model is; as text, in short.

    Attributes:
        title: what was measured.
    """

    @property
    def title(self) -> str: ...

    def record(self) -> dict[str, Any]:
        """What a run keeps of it."""
        ...


class Objective(Protocol):
    """Judges populations and measures models: answers that rewards judge (``runs.answers``), or the likelihood of text.

    Objectives inherit from it, for what they need not say themselves.
    """

    def judge(self, engine: Engine, population: Population, clock: Stopwatch) -> Judged:
        """Let a population do what it is judged by; ``clock`` takes note of what the time went into."""
        ...

    def measure(self, engine: Engine) -> Measurement:
        """Measure the unperturbed model on what is held out."""
        ...

    def fingerprint(self) -> str:
        """SHA-256 of the data, in hexadecimal."""
        ...

    def follow(self, engine: Engine, population: Population) -> None:
        """Make again what ``judge`` keeps of a generation whose scores are known, so that the next goes on from it."""
        return None

    def state_dict(self) -> dict[str, Tensor]:
        """What is kept from generation to generation."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what ``state_dict`` gave."""
        return None
