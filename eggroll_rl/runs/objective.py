"""The protocol of objectives: what gives a population its scores, and measures the model itself.

Legend: N members, P prompts (of text: one column).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from eggroll_rl.engines.base import Engine
from eggroll_rl.es.population import Population
from eggroll_rl.runs.clock import Stopwatch


class Judged(NamedTuple):
    """A judged population.

    Attributes:
        scores_NP: one score for each member and prompt, NaN where there is none.
        metrics: numbers for the record of the generation.
        samples: records of a few answers, for people to read.
    """

    scores_NP: Tensor
    metrics: dict[str, Any]
    samples: list[dict[str, Any]]


class Measurement(Protocol):
    """How good the unperturbed model is; ``str`` of it is a summary in one line.

    Attributes:
        title: what was measured, such as ``held-out accuracy``.
    """

    @property
    def title(self) -> str: ...

    def record(self) -> dict[str, Any]:
        """What metrics and journal keep of it, as JSON."""
        ...


class Objective(Protocol):
    """Judges populations and measures models: answers that rewards judge (``runs.answers``), or the likelihood of text.

    Objectives inherit from this class; of the methods with a body, ``whiten`` is for those whose recipe may
    have ``population.whitening``, the others are for those that keep a state between generations.
    """

    def judge(self, engine: Engine, population: Population, clock: Stopwatch) -> Judged:
        """Let the members answer or read, and score them; the time goes into the parts of ``clock``."""
        ...

    def measure(self, engine: Engine) -> Measurement:
        """Measure the unperturbed model on held-out data."""
        ...

    def fingerprint(self) -> str:
        """SHA-256 of the data, in hexadecimal."""
        ...

    def whiten(self, engine: Engine) -> Mapping[str, Tensor]:
        """Whiten the engine's noise as its data asks for; returns the entries of the engine's state that do it."""
        raise TypeError(f"the noise of {type(self).__name__} is plain")

    def follow(self, engine: Engine, population: Population) -> None:
        """Bring the state to where ``judge`` would leave it, for a replayed generation whose scores are known."""
        return None

    def state_dict(self) -> dict[str, Tensor]:
        """The state that is kept between generations, by name; empty where there is none."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state_dict`` returned."""
        return None
