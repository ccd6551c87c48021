"""The tensors that learn in vLLM's workers, read and written by the engine's process a shard at a time.

Both sides map one piece of shared memory, the window: each rank copies its part of the shard's rows into it or out of
it. Nothing goes through files, and nothing larger than a shard is anywhere but where it learns.
"""

import mmap
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from weakref import finalize

import torch
from torch import Tensor

from eggroll_rl.es import tensors
from eggroll_rl.es.parameters import EvolvedParameter
from eggroll_rl.es.tensors import Piece, Spec, Tensors, aligned, rows_of

Plain = dict[str, Any]
PlainPiece = Sequence[Any]
Call = Callable[..., list[Any]]  # of a worker's method by name; returns what each rank returns


class Window:
    """Shared memory of this process, which the workers open by its path; it lives as long as this object."""

    def __init__(self, nbytes: int) -> None:
        descriptor = os.memfd_create("eggroll-rl")
        finalize(self, os.close, descriptor)
        os.ftruncate(descriptor, nbytes)
        self.path = f"/proc/{os.getpid()}/fd/{descriptor}"
        self.bytes = open_window(self.path)

    @classmethod
    def roomy(cls, window: "Window | None", nbytes: int) -> "Window":
        """A window of at least so many bytes: the one that is there, else another with room for any shard, whose memory
        is taken when it is filled."""
        return window if window is not None and len(window.bytes) >= nbytes else cls(max(nbytes, tensors.SHARD))


def open_window(path: str) -> Tensor:
    """The bytes of a window."""
    with open(path, "r+b") as file:
        return torch.frombuffer(mmap.mmap(file.fileno(), 0), dtype=torch.uint8)


class WorkerTensors(Tensors):
    """The whole tensors of the learner's state, or the weights to save, as they are when they are read.

    Args:
        call: calls the workers.
    """

    def __init__(self, call: Call, weights_only: bool = False):
        self._call, self._weights_only = call, weights_only
        self._window: Window | None = None
        self.specs = specs_from(call("eggroll_specs", weights_only)[0])

    def read(self, shard: Sequence[Piece]) -> Iterator[Tensor]:
        self._window = window = Window.roomy(self._window, window_bytes(shard, self.specs))
        self._call("eggroll_read", window.path, list(map(list, shard)), self._weights_only)
        yield from window_views(window.bytes, shard, self.specs)


def load_into_workers(call: Call, state: Tensors) -> None:
    """Have the workers take over a whole state."""
    call("eggroll_make_room", specs_as_plain(state.specs))
    window = None
    for shard in state.shards(state):
        window = Window.roomy(window, window_bytes(shard, state.specs))
        for view, rows in zip(window_views(window.bytes, shard, state.specs), state.read(shard), strict=True):
            view.copy_(rows)
        call("eggroll_write", window.path, list(map(list, shard)))
    call("eggroll_go_on")


def window_bytes(shard: Sequence[Piece], specs: Mapping[str, Spec]) -> int:
    """The size of a window for these pieces, at least 1."""
    return sum(aligned(piece.nbytes(specs[piece.name])) for piece in shard) or 1


def window_views(window: Tensor, shard: Sequence[Piece], specs: Mapping[str, Spec]) -> Iterator[Tensor]:
    """The rows of each piece in a window."""
    begin = 0
    for piece in shard:
        spec = specs[piece.name]
        nbytes = piece.nbytes(spec)
        yield window[begin : begin + nbytes].view(spec.dtype).view(piece.shape(spec))
        begin += aligned(nbytes)


class Parts:
    """One rank's tensors as parts of whole ones: matrices may be divided, all else is whole in every rank.

    Args:
        tensors: by ``kind.name``, or by name alone.
        parts: the parameters as this rank has them, by name.
        whole: the same as the model has them.

    Attributes:
        specs: of the whole tensors.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        parts: Mapping[str, EvolvedParameter],
        whole: Mapping[str, EvolvedParameter],
    ):
        self._tensors, self._offsets = tensors, {}
        self.specs: dict[str, Spec] = {}
        for key, tensor in tensors.items():
            name = _name(key, parts)
            divided = _is_divided(tensor.ndim, parts[name], whole[name])
            self._offsets[key] = parts[name].offset if divided else (0, 0)
            self.specs[key] = Spec(tensor.dtype, tuple(whole[name].shape if divided else tensor.shape))

    @torch.no_grad()
    def copy(self, window: Tensor, shard: Sequence[Piece], into_window: bool) -> None:
        """Copy what this rank has of these pieces into a window, or out of it."""
        for piece, rows in zip(shard, window_views(window, shard, self.specs), strict=True):
            own, (row, column) = rows_of(self._tensors[piece.name]), self._offsets[piece.name]
            first, last = max(piece.start, row), min(piece.stop, row + len(own))
            if first >= last:
                continue
            there, here = rows[first - piece.start : last - piece.start], own[first - row : last - row]
            if own.ndim == 2:
                there = there[:, column : column + own.shape[1]]
            if into_window:
                there.copy_(here)
            else:
                here.copy_(there)


def part_specs(
    specs: Mapping[str, Spec], parts: Mapping[str, EvolvedParameter], whole: Mapping[str, EvolvedParameter]
) -> dict[str, Spec]:
    """What a rank has of whole tensors (see ``Parts``)."""
    found = {}
    for key, spec in specs.items():
        name = _name(key, parts)
        divided = _is_divided(len(spec.shape), parts[name], whole[name])
        found[key] = Spec(spec.dtype, tuple(parts[name].shape)) if divided else spec
    return found


def _is_divided(axes: int, part: EvolvedParameter, whole: EvolvedParameter) -> bool:
    return axes == 2 and tuple(part.shape) != tuple(whole.shape)


def _name(key: str, names: Mapping[str, Any]) -> str:
    return key if key in names else key.partition(".")[2]


def specs_as_plain(specs: Mapping[str, Spec]) -> Plain:
    """Specs as names and numbers, which are sent between processes."""
    return {name: [str(dtype).removeprefix("torch."), list(shape)] for name, (dtype, shape) in specs.items()}


def specs_from(values: Plain) -> dict[str, Spec]:
    """The specs that ``specs_as_plain`` turned into plain values."""
    return {name: Spec(getattr(torch, dtype), tuple(shape)) for name, (dtype, shape) in values.items()}


def pieces_from(shard: Sequence[PlainPiece]) -> list[Piece]:
    """The pieces of a shard that was sent as lists."""
    return [Piece(*piece) for piece in shard]
