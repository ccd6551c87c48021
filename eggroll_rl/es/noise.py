"""Counter-based noise: any element of any member's perturbation follows from integers, alone or in bulk.

The key of Philox is the run's seed; the counter is (block of four elements, pair, parameter id * 2 + side, noise
epoch). The four words of a block become four normals by Box-Muller in fp32, or four signs. The integers are the same on
every device; the floats agree within a few units in the last place.

A bulk draw holds one stream after the other, [K, elements] each, so that the noise of one matrix for many members is
contiguous.

Legend: K pairs, O out, I in, r rank.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from eggroll_rl.es import kernels
from eggroll_rl.es.parameters import EvolvedParameter, parameter_id
from eggroll_rl.es.perturbation import Dense, Distribution, Factors, Perturbation, Seeds
from eggroll_rl.es.philox import fill_words, key_of
from eggroll_rl.es.streams import Side, Stream, streams_of, tiles
from eggroll_rl.es.whitening import whitened

NOISE_VERSION = 1
_TILE = {"cpu": 2**16, "cuda": 2**20}  # blocks drawn at once: what the cache holds, what fills a GPU


class Noise:
    """The noise of a run, drawn in bulk.

    Args:
        seed: the key of every stream, 64 bits.
        distribution: ``normal``, or ``rademacher`` (signs).
        device: where the numbers are made.
        dtype: of what ``draw`` returns; the numbers themselves are fp32.
        rank: r of the low-rank factors.
        memo_bytes: the last draw is kept for later calls if it is no larger than this.

    Attributes:
        whitening: fp32 [I, I] by the name of a matrix: S of its noise ``A (S b)^T`` (see ``es.whitening``); other
            noise is plain.
    """

    def __init__(
        self,
        seed: int,
        distribution: Distribution = "normal",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        rank: int = 1,
        memo_bytes: int = 2**31,
    ) -> None:
        self.seed, self.distribution, self.rank = seed, distribution, rank
        self.device, self.dtype, self.memo_bytes = torch.device(device), dtype, memo_bytes
        self.whitening: dict[str, Tensor] = {}
        self._whitened: dict[tuple[str, torch.dtype, int], _Whitened] = {}
        self._memo: _Drawn | None = None
        self._where: Tensor | None = None
        self._kernels = kernels.run_on(self.device)

    def draw(
        self, parameters: Sequence[EvolvedParameter], epoch: int, pairs: range, dtype: torch.dtype | None = None
    ) -> dict[str, Factors | Dense]:
        """Noise of these parameters for a range of K pairs: ``Factors``, or ``Dense`` for a dense parameter.

        The tensors may be views of a buffer that later calls share: do not write to them.
        """
        dtype = dtype or self.dtype
        drawn = self._drawn(parameters, epoch, pairs, dtype)
        return {p.name: self._shaped(drawn, p, pairs, dtype) for p in parameters}

    def whiten(self, whitening: Mapping[str, Tensor]) -> None:
        """From now on, these matrices have whitened noise, and all others plain noise."""
        self.whitening = {name: whitening_II.to(self.device) for name, whitening_II in whitening.items()}
        self._whitened.clear()

    def prefetch(self, parameters: Sequence[EvolvedParameter], epoch: int, pairs: range) -> None:
        """Draw at once what later calls of ``draw`` will ask for piece by piece, if the memo can hold it."""
        if self.size(parameters, pairs) <= self.memo_bytes:
            self._drawn(parameters, epoch, pairs, self.dtype)

    def forget(self) -> None:
        """Free the memory of the last draw."""
        self._memo = None
        self._whitened.clear()

    def seeds(self, parameters: Sequence[EvolvedParameter], epoch: int, pairs: range) -> dict[str, Perturbation]:
        """As ``draw``, but matrices with plain noise get ``Seeds`` for the kernels; a later call overwrites the
        ``where`` of earlier ones, which all share one tensor."""
        from eggroll_rl.es.kernels.noise import whereabouts

        where = whereabouts(self.seed, epoch, pairs.start, self.device)
        self._where = where if self._where is None else self._where.copy_(where)
        others = [p for p in parameters if p.kind == "dense" or len(p.shape) > 2 or p.name in self.whitening]
        drawn: dict[str, Perturbation] = {**self.draw(others, epoch, pairs)} if others else {}
        for parameter in parameters:
            if parameter.name not in drawn:
                A, B = streams_of(parameter, self.rank)
                assert A.first == A.skipped == B.first == B.skipped == 0, "the noise of a whole matrix"
                drawn[parameter.name] = Seeds(len(pairs), A.word, B.word, self.rank, self.distribution, self._where)
        return drawn

    def size(self, parameters: Sequence[EvolvedParameter], pairs: range) -> int:
        """Bytes of the noise of these parameters and pairs, as the memo holds it."""
        blocks = sum(stream.blocks for parameter in parameters for stream in streams_of(parameter, self.rank))
        return 4 * self._stored(self.dtype).itemsize * blocks * len(pairs)

    def element_range(self, name: str, side: Side, epoch: int, pairs: range, start: int, stop: int) -> Tensor:
        """Elements ``start:stop`` of one stream for K pairs, fp32 [K, stop - start], as they are before whitening.

        Element ``o * r + j`` of side A is ``A[o, j]``, and so for B; a dense parameter is all on side A.
        """
        stream = Stream.of(parameter_id(name), side, start, stop)
        return stream.of_pairs(self._fill([stream], epoch, pairs), len(pairs))

    def _stored(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of the buffer that is drawn: ``dtype`` where the kernels round as they write, else fp32."""
        return dtype if self._kernels else torch.float32

    def _drawn(self, parameters: Sequence[EvolvedParameter], epoch: int, pairs: range, dtype: torch.dtype) -> "_Drawn":
        """The draw in the memo, if it covers these parameters and pairs; else a new one, kept in the memo if it fits.

        On CUDA, noise of another epoch or of equally many other pairs is written over the old buffer, because a
        captured graph reads it there.
        """
        stored, memo = self._stored(dtype), self._memo
        if memo is not None and memo.buffer.dtype == stored and memo.covers(parameters, epoch, pairs):
            return memo
        if stored != self._stored(self.dtype) or self.size(parameters, pairs) > self.memo_bytes:
            return self._draw(parameters, epoch, pairs, stored)
        same = memo is not None and len(memo.pairs) == len(pairs) and memo.streams.keys() == set(parameters)
        self._memo = self._draw(
            parameters, epoch, pairs, stored, memo.buffer if memo and same and self._kernels else None
        )
        return self._memo

    def _draw(
        self,
        parameters: Sequence[EvolvedParameter],
        epoch: int,
        pairs: range,
        dtype: torch.dtype,
        room: Tensor | None = None,
    ) -> "_Drawn":
        streams = {parameter: streams_of(parameter, self.rank) for parameter in parameters}
        ordered = [stream for pair in streams.values() for stream in pair]
        offsets = accumulate((4 * stream.blocks * len(pairs) for stream in ordered), initial=0)
        starts = dict(zip(ordered, offsets, strict=False))
        return _Drawn(epoch, pairs, streams, starts, self._fill(ordered, epoch, pairs, dtype, room))

    def _fill(
        self,
        streams: Sequence["Stream"],
        epoch: int,
        pairs: range,
        dtype: torch.dtype = torch.float32,
        room: Tensor | None = None,
    ) -> Tensor:
        """Numbers of these streams for K pairs, one stream after the other, flat; into ``room`` if given."""
        blocks = sum(stream.blocks for stream in streams) * len(pairs)
        if room is None:
            room = torch.empty(4 * blocks, dtype=dtype, device=self.device)
        if self._kernels:
            from eggroll_rl.es.kernels.noise import fill_, whereabouts

            where = whereabouts(self.seed, epoch, pairs.start, self.device)
            return fill_(room, [stream[:3] for stream in streams], len(pairs), where, self.distribution)
        out = room.view(blocks, 4)
        size = max(1, min(_TILE.get(self.device.type, 2**16), len(out)))
        integers = torch.empty(6 * size, dtype=torch.int64, device=self.device)
        done = 0
        for tile in tiles(streams, len(pairs), size):
            n = sum(blocks.size for blocks in tile)
            state = integers[: 6 * n].view(6, n)
            fill_words(state, tile, pairs.start, epoch, key_of(self.seed))
            _TRANSFORMS[self.distribution](state[:4], out[done : done + n])
            done += n
        return room

    def _shaped(
        self, drawn: "_Drawn", parameter: EvolvedParameter, pairs: range, dtype: torch.dtype
    ) -> Factors | Dense:
        """The noise of a parameter as ``_view`` has it, whitened where it is to be. The last of each dtype is kept; on
        CUDA that of each number of pairs, and written over, because a captured graph reads it there."""
        if parameter.name not in self.whitening:
            return self._view(drawn, parameter, pairs, dtype)
        key = parameter.name, dtype, len(pairs) if self._kernels else 0
        what, known = (drawn.epoch, pairs), self._whitened.get(key)
        plain = self._view(drawn, parameter, pairs, dtype)
        assert isinstance(plain, Factors) and parameter.offset == (0, 0), "whitening is of whole matrices"
        if known is not None and known.what == what:
            return Factors(plain.A_KOr, known.B_KIr)
        b_KIr = self._view(drawn, parameter, pairs, torch.float32)
        assert isinstance(b_KIr, Factors)
        B_KIr = whitened(b_KIr.B_KIr, self.whitening[parameter.name], pairs.start).to(dtype)
        if known is not None and self._kernels:
            with torch.inference_mode():  # in which the tensor may have been made
                B_KIr = known.B_KIr.copy_(B_KIr)
        self._whitened[key] = _Whitened(what, B_KIr)
        return Factors(plain.A_KOr, B_KIr)

    def _view(self, drawn: "_Drawn", parameter: EvolvedParameter, pairs: range, dtype: torch.dtype) -> Factors | Dense:
        first, last = pairs.start - drawn.pairs.start, pairs.stop - drawn.pairs.start
        tensors = []
        for stream in drawn.streams[parameter]:
            start = drawn.starts[stream]
            flat = drawn.buffer[start : start + 4 * stream.blocks * len(drawn.pairs)]
            tensors.append(stream.of_pairs(flat, len(drawn.pairs))[first:last].to(dtype))
        if parameter.kind == "dense":
            return Dense(tensors[0].unflatten(1, parameter.shape))
        experts = parameter.shape[:-2]
        A_KOr, B_KIr = (tensor.unflatten(1, (*experts, -1, self.rank)) for tensor in tensors)
        return Factors(A_KOr, B_KIr)


class _Whitened(NamedTuple):
    """Factors B [K, I, r] of one matrix, and of which epoch and pairs they are."""

    what: tuple[int, range]
    B_KIr: Tensor


class _Drawn(NamedTuple):
    """One bulk draw: stream after stream, each [K, 4 * blocks], and where in the buffer they start."""

    epoch: int
    pairs: range
    streams: dict[EvolvedParameter, list[Stream]]
    starts: dict[Stream, int]
    buffer: Tensor

    def covers(self, parameters: Sequence[EvolvedParameter], epoch: int, pairs: range) -> bool:
        inside = self.pairs.start <= pairs.start and pairs.stop <= self.pairs.stop
        return inside and self.epoch == epoch and all(parameter in self.streams for parameter in parameters)


def _normals(words: Tensor, out: Tensor) -> None:
    """Box-Muller: words [4, ...] of 32 bits -> out [..., 4]. The radius comes from u in (0, 1], so log is finite."""
    radius = words[0::2].float().mul_(2.0**-32).add_(2.0**-33).log_().mul_(-2).sqrt_()
    angle = words[1::2].float().mul_(2 * math.pi * 2.0**-32)
    torch.mul(radius, angle.cos(), out=out[..., 0::2].movedim(-1, 0))
    torch.mul(radius, angle.sin_(), out=out[..., 1::2].movedim(-1, 0))


def _signs(words: Tensor, out: Tensor) -> None:
    """+1 or -1 by the lowest bit."""
    out.copy_((words & 1).mul_(-2).add_(1).movedim(0, -1))


_TRANSFORMS = {"normal": _normals, "rademacher": _signs}
