"""How much of a model is as large as int8 holds, where nothing tells a little more from a lot more.

Legend: S streams, T bytes, M rows, O out, I in.
"""

from collections.abc import Mapping

from torch import Tensor

from eggroll_rl.es.rollout import Saturation
from eggroll_rl.models.egg.arithmetic import Weights, read
from eggroll_rl.models.egg.model import EggForCausalLM

LARGEST = 127
ROWS, BYTES = 8, 32  # of a text that are read to find out


class _Watched(Weights):
    """Weights that keep what share of each product was at its largest, product after product."""

    def __init__(self, parameters: Mapping[str, Tensor]):
        super().__init__(parameters)
        self.shares: dict[str, list[float]] = {}

    def product(self, name: str, x_MI: Tensor) -> Tensor:
        y_MO = super().product(name, x_MI)
        self.shares.setdefault(name, []).append(share_of(y_MO))
        return y_MO


def saturation(model: EggForCausalLM, byte_ST: Tensor) -> Saturation:
    """Of each parameter, the share of its weights at -127 or 127; of each matrix, the same of its products while the
    model reads the beginning of a text."""
    parameters = dict(model.named_parameters())
    watched = _Watched(parameters)
    read(watched, byte_ST[:ROWS, : BYTES + 1], model.new_state(len(byte_ST[:ROWS])))
    products = {name: sum(shares) / len(shares) for name, shares in watched.shares.items()}
    return Saturation({name: share_of(weight) for name, weight in parameters.items()}, products)


def share_of(tensor: Tensor) -> float:
    return float((tensor.abs() == LARGEST).double().mean())
