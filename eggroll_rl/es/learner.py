"""What turns the fitness of a population into weights: stock optimizers over fp32 masters or int8 (``es.update``), or
votes by which integers move (``models.egg``)."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from eggroll_rl.es.update import Update


class Learner(Protocol):
    """The weights of one model, and how they learn. All that it takes is an update, so that whoever takes the same
    updates has the same weights."""

    def step(self, update: Update) -> float:
        """Take one step and return its RMS over all evolved elements, in units of the weights as they are stored.

        Raises:
            NotFinite: the step overflows somewhere; everything is as before.
        """
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Weights and whatever the next step depends on, flat, as safetensors wants it."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what ``state_dict`` gave; the model's parameters follow."""
        ...
