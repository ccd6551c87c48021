"""Named tensors that are read in pieces, so that a hash, a file or a transfer needs no second copy of them.

A tensor's rows are its first axis; a number is one row. Pieces come in shards of at most ``SHARD`` bytes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

SHARD = 2**26  # bytes
ALIGNED = 8  # bytes: in a shard each piece begins at a multiple


class Spec(NamedTuple):
    """What a tensor is, but for its values."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> "Spec":
        return cls(tensor.dtype, tuple(tensor.shape))

    @property
    def rows(self) -> int:
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return self.rows * self.row_bytes


class Piece(NamedTuple):
    """Consecutive rows of a tensor."""

    name: str
    start: int
    stop: int

    def shape(self, spec: Spec) -> tuple[int, ...]:
        return (self.stop - self.start, *spec.shape[1:])

    def nbytes(self, spec: Spec) -> int:
        return (self.stop - self.start) * spec.row_bytes


def aligned(nbytes: int) -> int:
    """What so many bytes take in a shard."""
    return -(-nbytes // ALIGNED) * ALIGNED


def shards(specs: Mapping[str, Spec], names: Iterable[str], limit: int) -> Iterator[list[Piece]]:
    """All rows of these tensors in order, in lists that take at most ``limit`` bytes, or one row where that is larger;
    a tensor without values is a piece too."""
    shard: list[Piece] = []
    left = limit
    for name in names:
        spec, start = specs[name], 0
        if not spec.nbytes:
            shard.append(Piece(name, 0, spec.rows))
            continue
        while start < spec.rows:
            if left < min(limit, spec.row_bytes):
                yield shard
                shard, left = [], limit
            piece = Piece(name, start, min(spec.rows, start + max(1, left // spec.row_bytes)))
            shard.append(piece)
            start, left = piece.stop, max(0, left - aligned(piece.nbytes(spec)))
    if shard:
        yield shard


def rows_of(tensor: Tensor) -> Tensor:
    """The tensor with its rows as the first axis, a view."""
    return tensor if tensor.ndim else tensor[None]


class Tensors(ABC, Mapping[str, Tensor]):
    """A mapping of tensors that may be elsewhere: on another device, in a file, in other processes.

    A tensor that is asked for by its name comes whole, and a new one each time where it is elsewhere.

    Attributes:
        specs: what each is, by name.
    """

    specs: Mapping[str, Spec]

    @abstractmethod
    def read(self, shard: Sequence[Piece]) -> Iterator[Tensor]:
        """The rows of each piece, on the CPU; they last until the next is taken."""

    def shards(self, names: Iterable[str]) -> Iterator[list[Piece]]:
        """All rows of these tensors in order, in shards of at most ``SHARD`` bytes."""
        return shards(self.specs, names, SHARD)

    def stream(self, names: Iterable[str]) -> Iterator[tuple[Piece, Tensor]]:
        """The same with the values of each piece, on the CPU; they last until the next are taken."""
        for shard in self.shards(names):
            rows = self.read(shard)
            for piece in shard:
                yield piece, next(rows)

    def __getitem__(self, name: str) -> Tensor:
        spec = self.specs[name]
        whole = torch.empty(spec.shape, dtype=spec.dtype)
        for piece, rows in self.stream([name]):
            rows_of(whole)[piece.start : piece.stop] = rows
        return whole

    def __contains__(self, name: object) -> bool:
        return name in self.specs

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)


class Held(Tensors):
    """Tensors of this process, on whatever device; by name they are themselves."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self.tensors = {name: tensor.detach() for name, tensor in tensors.items()}
        self.specs = {name: Spec.of(tensor) for name, tensor in self.tensors.items()}

    def read(self, shard: Sequence[Piece]) -> Iterator[Tensor]:
        for name, start, stop in shard:
            yield rows_of(self.tensors[name])[start:stop].cpu()

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]


class Chosen(Tensors):
    """Some tensors of others under new names: name -> (the others, its name there)."""

    def __init__(self, chosen: Mapping[str, tuple[Tensors, str]]):
        self.chosen = dict(chosen)
        self.specs = {name: source.specs[there] for name, (source, there) in self.chosen.items()}

    def read(self, shard: Sequence[Piece]) -> Iterator[Tensor]:
        for _, group in groupby(shard, key=lambda piece: id(self.chosen[piece.name][0])):
            pieces = list(group)
            source = self.chosen[pieces[0].name][0]
            yield from source.read([piece._replace(name=self.chosen[piece.name][1]) for piece in pieces])

    def __getitem__(self, name: str) -> Tensor:
        source, there = self.chosen[name]
        return source[there]


class Cast(Tensors):
    """Tensors rounded to another dtype."""

    def __init__(self, source: Tensors, dtype: torch.dtype):
        self.source, self.dtype = source, dtype
        self.specs = {name: Spec(dtype, spec.shape) for name, spec in source.specs.items()}

    def read(self, shard: Sequence[Piece]) -> Iterator[Tensor]:
        for rows in self.source.read(shard):
            yield rows.to(self.dtype)


def streamed(tensors: Mapping[str, Tensor]) -> Tensors:
    """The same tensors to be read in pieces."""
    return tensors if isinstance(tensors, Tensors) else Held(tensors)


def named(tensors: Mapping[str, Tensor], prefix: str = "") -> dict[str, tuple[Tensors, str]]:
    """All of these for ``Chosen``, their names with a prefix."""
    source = streamed(tensors)
    return {f"{prefix}{name}": (source, name) for name in source}


def bytes_of(rows: Tensor) -> memoryview:
    """The bytes of a tensor of this process."""
    view: memoryview = rows.contiguous().reshape(-1).view(torch.uint8).numpy().data
    return view
