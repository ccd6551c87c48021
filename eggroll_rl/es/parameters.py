"""Which parameters evolve, and how: low-rank, dense, or not at all."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from hashlib import blake2b
from typing import Literal

from eggroll_rl.config import ParametersConfig
from eggroll_rl.system.errors import UsageError


def parameter_id(name: str) -> int:
    """A stable 31-bit hash of a canonical name: which noise stream is this parameter's."""
    return int.from_bytes(blake2b(name.encode(), digest_size=4).digest()) >> 1


@dataclass(frozen=True)
class EvolvedParameter:
    """A parameter with noise: its canonical (Hugging Face) name, the shape as stored, and the kind of noise.

    A ``lowrank`` matrix of shape (O, I) gets ``E = A B^T / sqrt(r)`` with A [O, r] and B [I, r], each matrix of a stack
    of experts (E, O, I) one of its own; a ``dense`` tensor gets one independent number for each element.

    ``offset`` makes it a shard of a matrix: the row and the column at which it begins; ``shape`` is the shard's. Its
    noise is that part of the whole matrix's noise.
    """

    name: str
    shape: tuple[int, ...]
    kind: Literal["lowrank", "dense"]
    offset: tuple[int, int] = (0, 0)

    @cached_property
    def id(self) -> int:
        return parameter_id(self.name)

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def noise_elements(self, rank: int) -> int:
        """Random numbers that one pair needs."""
        return self.numel if self.kind == "dense" else math.prod(self.shape[:-2]) * sum(self.shape[-2:]) * rank


def select(
    shapes: Mapping[str, tuple[int, ...]],
    config: ParametersConfig,
    stacks: Collection[str] = (),
    vectors: Collection[str] = (),
) -> list[EvolvedParameter]:
    """The parameters of a model that evolve, in the model's order.

    The first list of globs that matches a name decides: ``frozen``, ``dense``, ``lowrank``. Only matrices and stacks of
    them can be low-rank, so a vector or a convolution that matches ``lowrank`` alone stays as it is.

    Args:
        shapes: canonical name -> shape, as in ``{name: p.shape for name, p in model.named_parameters()}``.
        stacks: which tensors of three axes are stacks of matrices, those of experts.
        vectors: which tensors of two axes are no matrices, but stacks of vectors.

    Raises:
        UsageError: nothing evolves, a ``dense`` glob selects nothing, or two names hash to one noise stream.
    """
    evolved = []
    for name, shape in shapes.items():
        if _matches(name, config.frozen):
            continue
        if _matches(name, config.dense):
            evolved.append(EvolvedParameter(name, tuple(shape), "dense"))
        elif _matches(name, config.lowrank) and (name in stacks or (len(shape) == 2 and name not in vectors)):
            evolved.append(EvolvedParameter(name, tuple(shape), "lowrank"))
    _check_globs(shapes, config, evolved)
    _check_streams(evolved)
    return evolved


def _matches(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def _check_globs(
    shapes: Mapping[str, tuple[int, ...]], config: ParametersConfig, evolved: Sequence[EvolvedParameter]
) -> None:
    some = ", ".join(list(shapes)[:8]) + (", ..." if len(shapes) > 8 else "")
    for glob in config.dense:
        if any(_matches(parameter.name, [glob]) for parameter in evolved):
            continue
        if any(_matches(name, [glob]) for name in shapes):
            raise UsageError(
                f"parameters.dense {glob!r} matches only frozen parameters: take the glob that covers them out of "
                f"parameters.frozen {list(config.frozen)}"
            )
        raise UsageError(f"parameters.dense {glob!r} matches nothing; the model has {some}")
    if not evolved:
        raise UsageError(
            f"no parameter evolves: frozen {list(config.frozen)}, dense {list(config.dense)} and lowrank "
            f"{list(config.lowrank)} leave none of {some}; widen parameters.lowrank or narrow parameters.frozen"
        )


def _check_streams(evolved: Sequence[EvolvedParameter]) -> None:
    owner: dict[int, str] = {}
    for parameter in evolved:
        other = owner.setdefault(parameter.id, parameter.name)
        if other != parameter.name:
            raise UsageError(
                f"{other!r} and {parameter.name!r} hash to one noise stream: add one of them to parameters.frozen"
            )
