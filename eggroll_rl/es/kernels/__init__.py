"""Triton kernels for CUDA devices; each equals a plain torch version. They are imported only for tensors on CUDA.

``noise``: Philox and Box-Muller, in bulk or inside another kernel. ``lowrank``: a batch's perturbations of one matrix.
``wkv7``: the recurrence of RWKV-7, one token or many. ``time_mix``: one token of its mixers.
"""

from functools import cache
from importlib.util import find_spec
from typing import Literal, NamedTuple

import torch

REGENERATED_RANKS = (1, 2, 4)  # whose elements come in whole Philox blocks


class Rates(NamedTuple):
    """What a device does in a second: noise elements made, bytes moved (by ``timing``; here those of an H200)."""

    elements: float = 3.2e11
    bytes: float = 4.2e12


def run_on(device: torch.device) -> bool:
    """Whether the kernels run there: on CUDA, with Triton installed (as it is with torch's CUDA wheels on Linux)."""
    return device.type == "cuda" and _triton_installed()


def choose(
    size: int, element_size: int, uses: int, free: int, rank: int = 1, rates: Rates | None = None
) -> Literal["read", "regenerate"]:
    """Whether it is faster to draw a population's noise once and read it at every token, or to make it anew each time.

    Reading costs the draw, writing it, and ``uses`` passes over memory; regenerating costs ``uses`` draws, no memory.
    So noise that fits is read, unless it is hardly used or the device makes numbers faster than it moves them.

    Args:
        size: bytes of the noise of all pairs.
        element_size: bytes of one element.
        uses: tokens that each row goes on for.
        free: bytes that the noise may take.
        rank: r; the elements of other ranks than 1, 2 and 4 cannot be made in registers.
    """
    if rank not in REGENERATED_RANKS:
        return "read"
    if size > free:
        return "regenerate"
    rates = rates or Rates()
    draw = size / element_size / rates.elements
    return "read" if draw + (1 + uses) * size / rates.bytes <= uses * draw else "regenerate"


@cache
def _triton_installed() -> bool:
    return find_spec("triton") is not None
