"""Evolution in integers alone: int8 noise, signs for fitness, and weights that move by one where enough pairs agree.

EGG (arXiv 2511.16652, v2 appendices G and H). A number is stored as 16 times its value in int8, from -127 to 127; sigma
is ``2 ** -shift``. Sums of integers have no order, so that any number of threads, processes or machines finds the same
weights, bit for bit.

Legend: N members, K pairs, O out, I in.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from functools import cache
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from eggroll_rl.es.parameters import EvolvedParameter, parameter_id
from eggroll_rl.es.philox import key_of, philox4x32
from eggroll_rl.es.streams import Side
from eggroll_rl.system.errors import UsageError

MOST_PAIRS = (2**31 - 1) // 127**2  # whose products of int8 add up in int32
_PLACES = (1, 3, 9, 27, 81)
_CHUNK = 2**22  # elements of noise drawn at once


class RankOne(NamedTuple):
    """Noise ``A B^T`` of a matrix: A [..., O] and B [..., I], int8."""

    A: Tensor
    B: Tensor


IntegerNoise = Mapping[str, RankOne | Tensor]  # by parameter; of a vector: products of two draws, int16 [..., n]


def clip8(x: Tensor) -> Tensor:
    """To [-127, 127]: the range of every weight, activation and state."""
    return x.clamp(-127, 127)


@cache
def thresholds(first: float = 1.0) -> Tensor:
    """Where ``trunc(16 z)`` of a normal z rises by one, on a word of 32 random bits: int64 [2 J], in order.

    Of all 2**32 words, the lowest c_j give -j or less and the highest c_j give j or more, c_j being 2**32 times the
    probability of z <= -j / 16 to the nearest integer; J is the last j with a c_j above zero.

    Args:
        first: of 16 z, from where on it is 1; with 0.5 it is rounded to the nearest integer in place of truncated.
    """
    counts: list[int] = []
    while count := round(2**31 * math.erfc((len(counts) + first) / 16 / math.sqrt(2))):
        counts.append(count)
    return torch.tensor([*reversed(counts), *(2**32 - count for count in counts)], device="cpu")


def sixteenths(words: Tensor, first: float = 1.0) -> Tensor:
    """Words of 32 random bits (int64) -> ``trunc(16 N(0, 1))``, int8; ``first`` as in ``thresholds``."""
    rises = thresholds(first).to(words.device)
    return (torch.searchsorted(rises, words, right=True) - len(rises) // 2).to(torch.int8)


def draw(
    name: str, side: Side, size: int, seed: int, epoch: int, pairs: range, device: torch.device | str = "cpu"
) -> Tensor:
    """The first elements of a stream (``eggroll_rl.es.noise``) for K pairs, int8 [K, size]; one word each."""
    counter = (
        torch.arange(-(-size // 4), device=device),
        torch.arange(pairs.start, pairs.stop, device=device)[:, None],
        torch.tensor(parameter_id(name) << 1 | (side == "B"), device=device),
        torch.tensor(epoch, device=device),
    )
    words_Kn = torch.stack(philox4x32(counter, key_of(seed)), dim=-1).flatten(1)[:, :size]
    return sixteenths(words_Kn.contiguous())


def draw_noise(
    parameters: Sequence[EvolvedParameter], seed: int, epoch: int, pairs: range, device: torch.device | str = "cpu"
) -> dict[str, RankOne | Tensor]:
    """Noise of these parameters for K pairs: ``RankOne`` [K, ...] of a matrix, int16 [K, n] of a vector."""
    return {p.name: _draw_one(p, seed, epoch, pairs, device) for p in parameters}


def _draw_one(
    parameter: EvolvedParameter, seed: int, epoch: int, pairs: range, device: torch.device | str = "cpu"
) -> RankOne | Tensor:
    size_A, size_B = parameter.shape[0], parameter.shape[-1]
    A = draw(parameter.name, "A", size_A, seed, epoch, pairs, device)
    B = draw(parameter.name, "B", size_B, seed, epoch, pairs, device)
    return RankOne(A, B) if parameter.kind == "lowrank" else A.short() * B.short()


def of_members(noise: IntegerNoise, members: range) -> dict[str, RankOne | Tensor]:
    """Noise of consecutive members from that of all pairs: member 2k has pair k's, 2k + 1 the same with A negated."""
    member = torch.arange(members.start, members.stop)
    pair, sign = member // 2, (1 - member % 2 * 2)[:, None].to(torch.int8)
    return {
        name: RankOne(of.A[pair] * sign.to(of.A.device), of.B[pair])
        if isinstance(of, RankOne)
        else of[pair] * sign.to(of.device)
        for name, of in noise.items()
    }


def pair_fitness(score_N: Tensor) -> Tensor:
    """Which of each pair did better, int8 [K] in {-1, 0, 1}."""
    return torch.sign(score_N[0::2] - score_N[1::2]).to(torch.int8)


def pack_signs(fitness_K: Tensor) -> str:
    """Two bits for each pair, all that an update takes from the members: a byte for five of them, as text (base 85)."""
    code_K = torch.cat([fitness_K + 1, fitness_K.new_zeros(-len(fitness_K) % 5)])
    byte_B = (code_K.view(-1, 5) * torch.tensor(_PLACES)).sum(1).byte()
    return base64.b85encode(byte_B.numpy().tobytes()).decode()


def unpack_signs(packed: str, pairs: int) -> Tensor:
    """What ``pack_signs`` packed, int8 [K]."""
    byte_B1 = torch.tensor(list(base64.b85decode(packed)))[:, None]
    return (byte_B1 // torch.tensor(_PLACES) % 3 - 1).to(torch.int8).flatten()[:pairs]


def votes(noise: RankOne | Tensor, fitness_K: Tensor) -> Tensor:
    """``sum_k f_k A_k B_k^T`` [O, I], of a vector ``sum_k f_k e_k`` [n]; int32.

    Args:
        noise: of one parameter for K pairs.
    """
    fitness_K1 = fitness_K.int()[:, None]
    if isinstance(noise, Tensor):
        return (fitness_K1 * noise).sum(0, dtype=torch.int32)
    return (fitness_K1 * noise.A).T @ noise.B.int()


def counted_votes(parameter: EvolvedParameter, fitness_K: Tensor, seed: int, epoch: int) -> Tensor:
    """``votes`` of a parameter over all K pairs, some of whose noise is drawn at a time.

    Raises:
        UsageError: more pairs than an int32 holds the votes of.
    """
    if len(fitness_K) > MOST_PAIRS:
        raise UsageError(f"a population of {2 * len(fitness_K)} members: integers take no more than {2 * MOST_PAIRS}")
    chunk = max(1, _CHUNK // sum(parameter.shape))
    total = torch.zeros(parameter.shape, dtype=torch.int32)
    for start, some in zip(range(0, len(fitness_K), chunk), fitness_K.split(chunk), strict=True):
        total += votes(_draw_one(parameter, seed, epoch, range(start, start + len(some))), some)
    return total


def moving_share(generation: int, alpha: float = 4.0) -> float:
    """About which share of the weights moves in a generation: ``1 / ((2 ** alpha - 1) t / 1000 + 1)``; up to 1,
    ``alpha`` itself."""
    return 1 / ((2**alpha - 1) * generation / 1000 + 1) if alpha > 1 else alpha


def threshold_for(share: float) -> int:
    """How sure the votes must be for about this share of the weights to move, in 1/16 standard deviations."""
    return int(-16 * NormalDist().inv_cdf(share / 2))


def threshold(generation: int, alpha: float = 4.0) -> int:
    """The same in a generation."""
    return threshold_for(moving_share(generation, alpha))


def least_votes(threshold: int, pairs: int) -> int:
    """Of the votes of this many pairs, how many are ``threshold / 16`` standard deviations, each vote being 16 * 16."""
    return threshold * 16 * math.isqrt(pairs)


def stepped(weight: Tensor, votes: Tensor, least: int) -> Tensor:
    """The weight, int8, moved by one where it has at least ``least`` votes; no votes count as against."""
    direction = torch.where(votes > 0, 1, -1)
    return clip8(weight + (votes.abs() >= least) * direction).to(torch.int8)
