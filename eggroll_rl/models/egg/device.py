"""A population of EGG models on any device of torch, a GPU say: the reference's own formulas, with int8 products by
``torch._int_mm``. Bit for bit as ``arithmetic``, ``es.integers`` and, on CPUs, ``kernel``.

Legend: N members, K pairs, M rows, S streams, T tokens, D width, L layers, O out, I in, V = 256 bytes.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from eggroll_rl.es.integers import IntegerNoise, RankOne, draw_noise, of_members, stepped
from eggroll_rl.es.parameters import EvolvedParameter
from eggroll_rl.models.egg.arithmetic import BYTES, SHIFT, Weights, log_likelihood, step
from eggroll_rl.models.egg.kernel import Draw, Readings

_MEMBERS = 2**13  # that are computed at once, even


class DeviceEgg:
    """The weights of one model, shared by its population; the interface of ``EggKernel``.

    Args:
        parameters: name -> int8, on the device that computes; ``move`` changes them.
        layers: L.
    """

    def __init__(self, parameters: Mapping[str, Tensor], layers: int):
        self.layers = layers
        self.parameters = {name: parameter.data for name, parameter in parameters.items()}
        self.device = next(iter(self.parameters.values())).device
        self._evolved = [
            EvolvedParameter(name, tuple(weight.shape), "lowrank" if weight.ndim == 2 else "dense")
            for name, weight in self.parameters.items()
        ]

    def weights_changed(self) -> None:
        """Nothing is held that follows from the parameters."""

    @torch.no_grad()
    def read(
        self,
        byte_ST: Tensor,
        state_NLD: Tensor,
        members: range,
        group: int,
        draw: Draw,
        noise: IntegerNoise | None = None,
        details: bool = False,
    ) -> Readings:
        """As ``EggKernel.read``; the tensors lie on any device, and the readings where the states do."""
        assert members.start % 2 == 0, "no pair is split"
        at = state_NLD.device
        score_N = torch.empty(len(members), dtype=torch.int32, device=at)
        likelihood_NT = torch.empty(len(members) if details else 0, byte_ST.shape[1] - 1, dtype=torch.int32, device=at)
        logits_NV = torch.empty(len(members) if details else 0, BYTES, dtype=torch.int8, device=at)
        for rows in _parts(len(members), _MEMBERS):
            some = members[rows]
            weights = Int8Weights(self.parameters, self._noise_of(some, members, draw, noise), draw.shift)
            stream_M = torch.arange(some.start, some.stop) // group
            byte_MT = byte_ST[stream_M.to(byte_ST.device)].to(self.device).long()
            state_MLD, likelihoods = state_NLD[rows].to(self.device), []
            logits_MV = torch.empty(len(some), BYTES, dtype=torch.int32, device=self.device)
            for byte_M, next_M in zip(byte_MT.unbind(1), byte_MT[:, 1:].unbind(1), strict=False):
                logits_MV, state_MLD = step(weights, byte_M, state_MLD)
                likelihoods.append(log_likelihood(logits_MV, next_M))
            likelihood_MT = torch.stack(likelihoods, dim=1).int()
            state_NLD[rows] = state_MLD.to(at, torch.int8)
            score_N[rows] = likelihood_MT.sum(1, dtype=torch.int32).to(at)
            if details:
                likelihood_NT[rows], logits_NV[rows] = likelihood_MT.to(at), logits_MV.to(at, torch.int8)
        return Readings(score_N, likelihood_NT, logits_NV)

    @torch.no_grad()
    def vote(self, fitness_K: Tensor, draw: Draw) -> dict[str, Tensor]:
        """As ``EggKernel.vote``."""
        total = {
            name: torch.zeros(w.shape, dtype=torch.int32, device=self.device) for name, w in self.parameters.items()
        }
        for pairs in _parts(len(fitness_K), _MEMBERS // 2):
            fitness_K1 = fitness_K[pairs].to(self.device)[:, None]
            noise = draw_noise(self._evolved, draw.seed, draw.epoch, range(pairs.start, pairs.stop), self.device)
            for name, of in noise.items():
                if isinstance(of, RankOne):
                    total[name] += int8_product((fitness_K1 * of.A).T, of.B.T)
                else:
                    total[name] += (fitness_K1 * of).sum(0, dtype=torch.int32)
        return total

    @torch.no_grad()
    def move(self, votes: Mapping[str, Tensor], least: int) -> dict[str, int]:
        """As ``EggKernel.move``."""
        moved = {}
        for name, weight in self.parameters.items():
            after = stepped(weight, votes[name], least)
            moved[name] = int((after != weight).sum())
            weight.copy_(after)
        return moved

    def _noise_of(self, some: range, members: range, draw: Draw, noise: IntegerNoise | None) -> IntegerNoise:
        """The noise of some of the members; given is that of all their pairs."""
        first = some.start if noise is None else members.start
        if noise is None:
            pairs = range(some.start // 2, (some.stop + 1) // 2)
            noise = draw_noise(self._evolved, draw.seed, draw.epoch, pairs, self.device)
        on_device = {
            name: RankOne(*(side.to(self.device) for side in of)) if isinstance(of, RankOne) else of.to(self.device)
            for name, of in noise.items()
        }
        return of_members(on_device, range(some.start - first, some.stop - first))


class Int8Weights(Weights):
    """Products of int8 where the reference has those of int32, which CUDA has not."""

    def __init__(self, parameters: Mapping[str, Tensor], noise: IntegerNoise | None = None, shift: int = SHIFT):
        super().__init__(parameters, noise, shift)
        self._int8 = parameters

    def multiplied(self, name: str, x_MI: Tensor) -> Tensor:
        return int8_product(x_MI.to(torch.int8), self._int8[name])


def int8_product(x_MI: Tensor, W_OI: Tensor) -> Tensor:
    """``x W^T`` of int8, int32 [M, O]. Zeros fill up to sizes that cuBLAS takes: more than 16 rows, and eights."""
    (M, I), O = x_MI.shape, len(W_OI)  # noqa: E741  the legend's letters
    x, W = _filled(x_MI, -M % 32, -I % 8), _filled(W_OI, -O % 8, -I % 8)
    return torch._int_mm(x.contiguous(), W.contiguous().T)[:M, :O]


def _filled(x: Tensor, rows: int, columns: int) -> Tensor:
    return F.pad(x, (0, columns, 0, rows)) if rows or columns else x


def _parts(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
