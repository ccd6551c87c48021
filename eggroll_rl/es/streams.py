"""Which random numbers make the noise of a parameter: elements of streams, in blocks of four.

A stream has one number for each element of a factor (side A or B) of a parameter. ``tiles`` divides the blocks of many
streams and pairs into portions that fit a cache.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Literal, NamedTuple

from torch import Tensor

from eggroll_rl.es.parameters import EvolvedParameter

Side = Literal["A", "B"]


class Stream(NamedTuple):
    """A range of a stream's elements, and the whole blocks of four that hold it."""

    word: int  # third word of the counter: parameter id * 2 + side
    first: int  # the first block
    blocks: int  # how many blocks
    skipped: int  # elements of the first block that come before the range
    elements: int  # of the range

    @classmethod
    def of(cls, identity: int, side: Side, start: int, stop: int) -> "Stream":
        return cls(identity << 1 | (side == "B"), start // 4, -(-stop // 4) - start // 4, start % 4, stop - start)

    def of_pairs(self, flat: Tensor, pairs: int) -> Tensor:
        """The range's elements [K, elements], given the blocks of K pairs, flat."""
        return flat.view(pairs, 4 * self.blocks)[:, self.skipped : self.skipped + self.elements]


def streams_of(parameter: EvolvedParameter, rank: int) -> list[Stream]:
    """The streams of a parameter: one if it is dense, else those of A and B; of a shard, its ranges of them."""
    if parameter.kind == "dense":
        return [Stream.of(parameter.id, "A", 0, parameter.numel)]
    experts, (rows, columns), (row, column) = math.prod(parameter.shape[:-2]), parameter.shape[-2:], parameter.offset
    return [
        Stream.of(parameter.id, "A", row * rank, (row + experts * rows) * rank),
        Stream.of(parameter.id, "B", column * rank, (column + experts * columns) * rank),
    ]


class Blocks(NamedTuple):
    """Blocks ``columns`` of a stream for the pairs ``rows``; contiguous in the buffer (all columns, or one row)."""

    stream: Stream
    rows: range
    columns: range

    @property
    def size(self) -> int:
        return len(self.rows) * len(self.columns)


def tiles(streams: Sequence[Stream], pairs: int, size: int) -> Iterator[list[Blocks]]:
    """All blocks of all streams in the buffer's order, in lists with at most ``size`` blocks together."""
    tile: list[Blocks] = []
    room = size
    for stream in streams:
        wide = max(1, min(stream.blocks, size))
        for row, column in product(range(0, pairs, size // wide), range(0, stream.blocks, wide)):
            rows = range(row, min(row + size // wide, pairs))
            blocks = Blocks(stream, rows, range(column, min(column + wide, stream.blocks)))
            if blocks.size > room:
                yield tile
                tile, room = [], size
            tile.append(blocks)
            room -= blocks.size
    if tile:
        yield tile
