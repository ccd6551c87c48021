"""What the pool and the launch share: dividing a call among replicas, joining its results, comparing their weights."""

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
    """How many of ``count`` a replica gets at a time: members, or prompts, of which ``unit`` are worth a member."""
    return pool.chunk * unit if pool.chunk else max(1, math.ceil(count / pool.replicas / 2))


def generate_by_members(
    prompts: Sequence[Prompt], sampling: SamplingConfig, population: Population, members: range | None, size: int
) -> list[GenerateArguments]:
    """The arguments of ``generate`` for parts of ``size`` members each, or one more: pairs stay whole."""
    return [(prompts, sampling, population, chunk) for chunk in population.chunks(size, members)]


def generate_by_prompts(prompts: Sequence[Prompt], sampling: SamplingConfig, size: int) -> list[GenerateArguments]:
    """The arguments of ``generate`` for parts of ``size`` prompts each; one part where answers are sampled, because a
    prompt's random numbers follow from its position."""
    if sampling.temperature > 0:
        return [(prompts, sampling, None, None)]
    return [(prompts[first : first + size], sampling, None, None) for first in range(0, len(prompts), size)]


def read_by_members(
    byte_ST: Tensor, state: Tensor | None, population: Population, members: range | None, size: int
) -> list[tuple[Any, ...]]:
    """The arguments of ``read`` for parts of ``size`` members each, or one more: pairs stay whole."""
    first = members.start if members else 0
    return [
        (byte_ST, None if state is None else state[chunk.start - first : chunk.stop - first].clone(), population, chunk)
        for chunk in population.chunks(size, members)
    ]


def join_foretold(parts: Sequence[Foretold]) -> Foretold:
    """Join the results of ``read`` for parts, in order."""
    return Foretold(torch.cat([part.bits for part in parts]), torch.cat([part.state for part in parts]))


def join_answers(answers: Sequence[list[list[Completion]]], population: Population | None) -> list[list[Completion]]:
    """Join the results of ``generate`` for parts, in order: members with a population, prompts without."""
    if population is not None:
        return [row for part in answers for row in part]
    return [[completion for part in answers for completion in part[0]]]


def common_hash(hashes: Mapping[str, str]) -> str:
    """The one hash that all replicas have; ``hashes`` has each replica's by its name.

    Raises:
        ReplicaMismatch: hashes differ; names the minority, or all where no hash has a majority.
    """
    (common, count), *others = Counter(hashes.values()).most_common()
    if others:
        odd = ", ".join(sorted(name for name, found in hashes.items() if found != common or 2 * count <= len(hashes)))
        raise ReplicaMismatch(
            f"after the same updates the weights differ: of {len(hashes)} replicas, those of {odd}; "
            "run all on one kind of processor or GPU, with one version of torch"
        )
    return common
