"""A matrix of int8 as it learns, without a float copy: steps of whole units, and what rounding lost is carried on.

The step is that of SGD or Adam, over the scale of its row. What of it is no whole unit stays in a residual of 4 bits
(15 levels of 1/14 of a unit), itself rounded up or down at random so that steps of any size add up in the mean. Scales
never change: a weight at +-127 stays there until its steps turn back.

Of the optimizers' states, the first moment is int8 with one scale for each row. Adam's second moment is factored into
rows and columns (Adafactor, arXiv 1804.04235, section 3): the squares of a sum of rank-one noise are about as large
everywhere in a matrix. Stored: 1 byte for a weight, 1/2 for its residual, 1 for its moment.

Legend: O out, I in.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from eggroll_rl.config import OptimizerConfig
from eggroll_rl.es.int8 import LARGEST_INT8, Quantised
from eggroll_rl.es.parameters import parameter_id
from eggroll_rl.es.philox import key_of, philox4x32
from eggroll_rl.es.population import Population
from eggroll_rl.es.streams import Side
from eggroll_rl.es.tensors import Spec

LEVELS = 7  # of a residual to either side; 7 is half a unit
EPSILON = 1e-8  # torch's, of Adam


class Int8Parameter:
    """An int8 matrix of a model and what its next step depends on, all zero at first.

    Args:
        name: canonical; the residual's random numbers follow from it, the run's seed and the generation.
        matrix: the model's own tensors; q changes in place.
        config: which optimizer, and whether what rounding loses is carried on.
    """

    def __init__(self, name: str, matrix: Quantised, config: OptimizerConfig):
        self._name, self._matrix, self._config = name, matrix, config
        O, I = matrix.q_OI.shape  # noqa: E741
        device = matrix.q_OI.device
        self._state: dict[str, Tensor] = {}
        if config.error_feedback:
            self._state["residual"] = pack(torch.zeros(O, I, device=device))
        if config.name != "sgd":
            self._state |= {
                "step": torch.zeros(()),
                "rows": torch.zeros(O, device=device),
                "columns": torch.zeros(I, device=device),
            }
        if config.momentum if config.name == "sgd" else config.betas[0]:
            self._state |= {
                "moment": torch.zeros(O, I, dtype=torch.int8, device=device),
                "moment_scale": torch.zeros(O, 1, device=device),
            }

    def step(self, gradient: Tensor, lr: float, population: Population) -> Tensor:
        """Step and return the sum of the step's squares, in the units of the float weights; infinite, and the weights
        as they were, where it overflows."""
        (q_OI, scale_O1), decay = self._matrix, self._config.weight_decay
        residual_OI = unpack(self._state["residual"], q_OI.shape[1]) if "residual" in self._state else 0.0
        gradient = gradient.to(q_OI.device)
        if decay and self._config.name != "adamw":
            gradient.add_((q_OI + residual_OI) * scale_O1, alpha=decay)
        wanted_OI = self._direction(gradient).mul_(-lr).div_(scale_O1).add_(residual_OI)
        if decay and self._config.name == "adamw":
            wanted_OI -= lr * decay * (q_OI + residual_OI)
        if not bool(wanted_OI.isfinite().all()):
            return torch.tensor(math.inf)
        before_OI = q_OI.clone()
        q_OI.copy_((q_OI + wanted_OI.round()).clamp_(-LARGEST_INT8, LARGEST_INT8))
        taken_OI = (q_OI.float() - before_OI).to(torch.float32)
        if "residual" in self._state:
            lost_OI = wanted_OI.sub_(taken_OI).clamp_(-0.5, 0.5)
            self._state["residual"] = pack(lost_OI, dither(self._name, population, lost_OI))
        return taken_OI.mul_(scale_O1).square_().sum()

    def state(self) -> dict[str, Tensor]:
        """q and the rest, by kind."""
        return {"weight": self._matrix.q_OI, **self._state}

    def fits(self, specs: Mapping[str, Spec]) -> bool:
        """Whether tensors of these kinds can be what ``state`` returned."""
        own = self.state()
        return specs.keys() == own.keys() and all(specs[kind].shape == own[kind].shape for kind in own)

    def make_room(self, specs: Mapping[str, Spec]) -> None:
        """``state`` has all that is to be restored already."""

    def write(self) -> None:
        """The model multiplies by the matrix itself."""

    def _direction(self, gradient_OI: Tensor) -> Tensor:
        """What SGD or Adam multiply by the rate, in fp32; the moments go on."""
        if self._config.name == "sgd":
            return self._moment(gradient_OI, self._config.momentum, 1.0)
        first, second = self._config.betas
        self._state["step"] += 1
        steps = int(self._state["step"])
        rows_O, columns_I = self._state["rows"], self._state["columns"]
        square_OI = gradient_OI.square()
        rows_O.lerp_(square_OI.mean(1, dtype=torch.float64).float(), 1 - second)
        columns_I.lerp_(square_OI.mean(0, dtype=torch.float64).float(), 1 - second)
        usual = rows_O.mean(dtype=torch.float64).float().clamp_min(torch.finfo(torch.float32).tiny)
        size_OI = torch.outer(rows_O / usual, columns_I).div_(1 - second**steps).sqrt_().add_(EPSILON)
        return self._moment(gradient_OI, first, 1 - first).div_(1 - first**steps).div_(size_OI)

    def _moment(self, gradient_OI: Tensor, kept: float, taken: float) -> Tensor:
        """``kept * moment + taken * gradient``, which is the next moment as far as int8 holds it."""
        if not kept:
            return gradient_OI
        stored = Quantised(self._state["moment"], self._state["moment_scale"])
        moment_OI = stored.dequantised().mul_(kept).add_(gradient_OI, alpha=taken)
        scale_O1 = (moment_OI.abs().amax(1, keepdim=True) / LARGEST_INT8).clamp_min_(torch.finfo(torch.float32).tiny)
        self._state["moment"] = (moment_OI / scale_O1).round_().to(torch.int8)
        self._state["moment_scale"] = scale_O1
        return moment_OI


def pack(residual_OI: Tensor, dither_OI: Tensor | float = 0.0) -> Tensor:
    """Residuals from -1/2 to 1/2 as 4 bits each, two in a byte: uint8 [O, I / 2, rounded up].

    Args:
        dither_OI: from 0 to below 1: the part of the way to the next level from which a residual is rounded up.
    """
    level_OI = (residual_OI * (2 * LEVELS)).add_(dither_OI).floor_().clamp_(-LEVELS, LEVELS).add_(8).to(torch.uint8)
    if level_OI.shape[1] % 2:
        level_OI = torch.cat((level_OI, level_OI.new_full((len(level_OI), 1), 8)), dim=1)
    return level_OI[:, ::2] | level_OI[:, 1::2] << 4


def unpack(packed: Tensor, inner: int) -> Tensor:
    """fp32 [O, I] of what ``pack`` packed."""
    level_OI = torch.stack((packed & 15, packed >> 4), dim=2).flatten(1)[:, :inner]
    return (level_OI.float() - 8) / (2 * LEVELS)


def dither(name: str, population: Population, like_OI: Tensor) -> Tensor:
    """Numbers from 0 to below 1, each evenly distributed over the generations: ``a_o + b_i`` modulo 1, of a stream of
    its own (``eggroll_rl.es.streams``)."""
    rows, columns = like_OI.shape
    a_O = _uniform(name, "A", rows, population).to(like_OI.device)
    b_I = _uniform(name, "B", columns, population).to(like_OI.device)
    return (a_O[:, None] + b_I).remainder_(1)


def _uniform(name: str, side: Side, size: int, population: Population) -> Tensor:
    """fp32 [size], multiples of 2**-23 from 0 to below 1, whose sums are exact."""
    stream = torch.tensor(parameter_id(f"{name}/residual") << 1 | (side == "B"))
    counter = (torch.arange(-(-size // 4)), torch.tensor(0), stream, torch.tensor(population.generation))
    words = torch.stack(philox4x32(counter, key_of(population.seed)), dim=1).flatten()[:size]
    return (words >> 9).float() / 2**23
