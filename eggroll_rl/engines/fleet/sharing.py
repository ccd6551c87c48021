"""What engines made of replicas share: a call of ``generate`` in parts, and weights that are the same everywhere."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from eggroll_rl.config import PoolConfig, SamplingConfig
from eggroll_rl.es.population import Population
from eggroll_rl.es.rollout import Completion, Foretold, Prompt


class ReplicaMismatch(RuntimeError):
    """Replicas that took the same updates have different weights."""


GenerateArguments = tuple[Sequence[Prompt], SamplingConfig, Population | None, range | None]


def portion(pool: PoolConfig, count: int, unit: int = 1) -> int:
    """How many of ``count`` go to a replica at a time; ``unit`` of them are worth a member."""
    return pool.chunk * unit if pool.chunk else max(1, math.ceil(count / pool.replicas / 2))


def by_members(
    prompts: Sequence[Prompt], sampling: SamplingConfig, population: Population, members: range | None, size: int
) -> list[GenerateArguments]:
    """Parts of ``size`` members each, or one more: pairs stay whole."""
    return [(prompts, sampling, population, chunk) for chunk in population.chunks(size, members)]


def by_prompts(prompts: Sequence[Prompt], sampling: SamplingConfig, size: int) -> list[GenerateArguments]:
    """Parts of ``size`` prompts each; one part where answers are sampled: the random numbers follow the places."""
    if sampling.temperature > 0:
        return [(prompts, sampling, None, None)]
    return [(prompts[first : first + size], sampling, None, None) for first in range(0, len(prompts), size)]


def readings(
    byte_ST: Tensor, state: Tensor | None, population: Population, members: range | None, size: int
) -> list[tuple[Any, ...]]:
    """Arguments of ``read`` for ``size`` members each, or one more."""
    first = members.start if members else 0
    return [
        (byte_ST, None if state is None else state[chunk.start - first : chunk.stop - first].clone(), population, chunk)
        for chunk in population.chunks(size, members)
    ]


def unite_readings(parts: Sequence[Foretold]) -> Foretold:
    """What ``read`` gives for the whole, from what it gave for the parts, in order."""
    return Foretold(torch.cat([part.bits for part in parts]), torch.cat([part.state for part in parts]))


def unite(answers: Sequence[list[list[Completion]]], population: Population | None) -> list[list[Completion]]:
    """What ``generate`` gives for the whole, from what it gave for the parts, in order."""
    if population is not None:
        return [row for part in answers for row in part]
    return [[completion for part in answers for completion in part[0]]]


def agreed(hashes: Mapping[str, str]) -> str:
    """The hash of the weights that all replicas have, given by the replica's name.

    Raises:
        ReplicaMismatch: naming those whose hash is not that of most, or all where no hash is.
    """
    (common, count), *others = Counter(hashes.values()).most_common()
    if others:
        odd = ", ".join(sorted(name for name, found in hashes.items() if found != common or 2 * count <= len(hashes)))
        raise ReplicaMismatch(
            f"after the same updates the weights differ: of {len(hashes)} replicas, those of {odd}; "
            "run all on one kind of processor or GPU, with one version of torch"
        )
    return common
