"""The integers of one model: its population reads text by them, and its votes move them. The C kernel
computes on a CPU, torch on other devices; both give the same, bit for bit.

Legend: N members, K pairs, S streams, T bytes foretold, D width, L layers.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from eggroll_rl.es.integers import least_votes, threshold_for
from eggroll_rl.es.learner import Learner
from eggroll_rl.es.update import Update
from eggroll_rl.models.egg.arithmetic import SHIFT
from eggroll_rl.models.egg.device import DeviceEgg
from eggroll_rl.models.egg.kernel import Draw, EggKernel
from eggroll_rl.models.egg.model import EggForCausalLM
from eggroll_rl.system.errors import UsageError
from eggroll_rl.system.native import CompilerMissing


class EggLearner(Learner):
    """The weights of a model, which learn in place: no optimizer state, no order that matters.

    Args:
        model: whose weights they are, on the device that computes.
        seed: of the noise.
        shift: sigma is 2 ** -shift.
        kernel: what computes; None: what suits the device.

    Raises:
        UsageError: the model is on a CPU, and there is no C compiler.
    """

    def __init__(
        self, model: EggForCausalLM, seed: int, shift: int = SHIFT, kernel: EggKernel | DeviceEgg | None = None
    ):
        self.model, self.seed, self.shift = model, seed, shift
        self.kernel = kernel or (c_kernel(model) if model.device.type == "cpu" else torch_kernel(model))

    def read(self, byte_ST: Tensor, state_NLD: Tensor, members: range, group: int, epoch: int) -> Tensor:
        """Let consecutive members read on, whose states change in place; their scores, int32 [N] in 1/16 bits.

        Args:
            byte_ST: uint8 [S, T + 1]; member i reads stream i // group.
        """
        return self.kernel.read(byte_ST, state_NLD, members, group, self._draw(epoch)).score_N

    def read_unperturbed(self, byte_ST: Tensor, state_SLD: Tensor) -> Tensor:
        """The same of the model itself, one row for each stream."""
        rows = range(len(byte_ST))
        return self.kernel.read(byte_ST, state_SLD, rows, 1, self._draw(0), noise={}).score_N

    def learn(self, fitness_K: Tensor, epoch: int, threshold: int) -> dict[str, int]:
        """Take a step; of each parameter, how many weights moved.

        Args:
            fitness_K: int8 in {-1, 0, 1}.
            threshold: how sure the votes must be, in 1/16 standard deviations.
        """
        votes = self.kernel.vote(fitness_K, self._draw(epoch))
        return self.kernel.move(votes, least_votes(threshold, len(fitness_K)))

    def step(self, update: Update) -> float:
        """Take the step of signs, of which about the share ``update.lr`` of the weights moves; its RMS, which is the
        root of the share that did."""
        fitness_K = torch.tensor(update.weights[0::2]).sign().to(torch.int8)
        moved = self.learn(fitness_K, update.population.epoch, threshold_for(update.lr))
        return math.sqrt(sum(moved.values()) / self.model.num_parameters())

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.model.state_dict())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.model.load_state_dict(dict(state))
        self.kernel.weights_changed()

    def _draw(self, epoch: int) -> Draw:
        return Draw(self.seed, epoch, self.shift)


def c_kernel(model: EggForCausalLM) -> EggKernel:
    """A model's population in C.

    Raises:
        UsageError: there is no C compiler.
    """
    config = model.config
    try:
        return EggKernel(dict(model.named_parameters()), config.hidden_size, config.num_hidden_layers)
    except CompilerMissing as reason:
        raise UsageError(f"EGG learns by a C kernel: install a C compiler ({reason})") from reason


def torch_kernel(model: EggForCausalLM) -> DeviceEgg:
    """A model's population by torch, on the model's device."""
    return DeviceEgg(dict(model.named_parameters()), model.config.num_hidden_layers)
