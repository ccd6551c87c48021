"""The protocol of learners, which turn an update into new weights: stock optimizers over fp32 masters or int8
(``es.update``), or votes that move integers (``models.egg``)."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from eggroll_rl.es.update import Update


class Learner(Protocol):
    """The weights of one model, and how they learn. They depend on the updates alone, so that learners that take the
    same updates have the same weights."""

    def step(self, update: Update) -> float:
        """Take one step and return its RMS over all evolved elements, in units of the weights as they are stored.

        Raises:
            NotFinite: the step overflows somewhere; everything is as before.
        """
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Weights and everything else that the next step depends on, as a flat mapping, which safetensors can store."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state_dict`` returned, and write the model's parameters from it."""
        ...
