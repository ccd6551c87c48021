"""Philox-4x32-10 (Salmon et al., SC 2011, "Parallel random numbers: as easy as 1, 2, 3"): counters to random integers.

The integers are those of Random123, the same on every device; on a CPU with a C compiler ``philox.c`` makes them.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from eggroll_rl.es.streams import Blocks
from eggroll_rl.system.native import kernels_or_none

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF


def philox4x32(counter: Sequence[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Philox-4x32-10: four words of counter (int64 tensors of uint32 values, broadcast together) -> four words."""
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    state = torch.stack([c0, c1, c2, c3, c0, c0])
    _philox_(state, key)
    return list(state[:4])


def key_of(seed: int) -> tuple[int, int]:
    """The two words of the Philox key."""
    return seed & _MASK, seed >> 32 & _MASK


def _philox_(state: Tensor, key: tuple[int, int]) -> None:
    """Ten rounds in place on words 0 to 3 of ``state`` [6, ...] int64; words 4 and 5 are scratch.

    Products wrap modulo 2**64, so their low words are right; the high word is what an arithmetic shift leaves under the
    mask. Words 1 and 3 keep a whole product between the rounds: only their low halves matter.
    """
    c0, c1, c2, c3, product0, product1 = state
    k0, k1 = key
    for _ in range(10):
        torch.mul(c0, _M0, out=product0)
        torch.mul(c2, _M1, out=product1)
        torch.bitwise_right_shift(product1, 32, out=c0)
        c0.bitwise_xor_(c1).bitwise_xor_(k0).bitwise_and_(_MASK)
        torch.bitwise_right_shift(product0, 32, out=c2)
        c2.bitwise_xor_(c3).bitwise_xor_(k1).bitwise_and_(_MASK)
        c1, product1 = product1, c1
        c3, product0 = product0, c3
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    c1.bitwise_and_(_MASK)
    c3.bitwise_and_(_MASK)


def fill_words(state: Tensor, tile: Sequence[Blocks], first_pair: int, epoch: int, key: tuple[int, int]) -> None:
    """Put the words of a tile's blocks into rows 0 to 3 of ``state`` [6, blocks] int64; rows 4 and 5 are scratch."""
    fill = _native_words if state.device.type == "cpu" and _library() else _torch_words
    fill(state, tile, first_pair, epoch, key)


def _torch_words(state: Tensor, tile: Sequence[Blocks], first_pair: int, epoch: int, key: tuple[int, int]) -> None:
    state[3] = epoch
    start = 0
    for stream, rows, columns in tile:
        counters = state[:3, start : start + len(rows) * len(columns)].view(3, len(rows), len(columns))
        counters[0] = torch.arange(columns.start, columns.stop, device=state.device) + stream.first
        counters[1] = torch.arange(rows.start, rows.stop, device=state.device)[:, None] + first_pair
        counters[2] = stream.word
        start += len(rows) * len(columns)
    _philox_(state, key)


def _native_words(state: Tensor, tile: Sequence[Blocks], first_pair: int, epoch: int, key: tuple[int, int]) -> None:
    library = _library()
    assert library is not None and state.is_contiguous()
    start, stride = state.data_ptr(), state.shape[1]
    for blocks in tile:
        stream, rows, columns = blocks
        library.philox_words(
            len(rows), len(columns), first_pair + rows.start, stream.first + columns.start, stream.word, epoch,
            *key, start, stride,
        )  # fmt: skip
        start += blocks.size * state.itemsize


@cache
def _library() -> ctypes.CDLL | None:
    size, word = ctypes.c_int64, ctypes.c_uint32
    arguments = [*[size] * 6, word, word, ctypes.c_void_p, size]
    source = Path(__file__).with_suffix(".c")
    return kernels_or_none(source, {"philox_words": arguments}, "noise is drawn in torch, more slowly")
