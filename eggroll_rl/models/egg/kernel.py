"""A population of EGG models and its learning by ``population.c``: bit for bit as ``arithmetic`` and ``es.integers``.

Legend: N members, K pairs, S streams, T tokens, D width, L layers, V = 256 bytes.
"""

import ctypes
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from eggroll_rl.es.integers import IntegerNoise, RankOne, thresholds
from eggroll_rl.es.parameters import parameter_id
from eggroll_rl.es.philox import key_of
from eggroll_rl.models.egg.arithmetic import BYTES, log_steps, powers
from eggroll_rl.system.native import load_kernels

Products = Literal["vnni", "avx512", "avx2", "portable"]
_NOISE = 2**22  # bytes of noise that are held while votes are counted, and at least that of so many pairs:
_PAIRS = 64

_int, _word, _pointer = ctypes.c_int64, ctypes.c_uint32, ctypes.c_void_p
_SIGNATURES: dict[str, list[Any]] = {
    "egg_sizes": [_pointer, _pointer],
    "egg_pack": [_pointer],
    "egg_noise": [_pointer, _word, _word, _word, _int, _int, _pointer, _pointer, _pointer, _int],
    "egg_read": [
        _pointer, _word, _word, _word, _pointer, _int, _pointer, *[_int] * 6, *[_pointer] * 6, _int, _int,
    ],
    "egg_vote": [_pointer, _word, _word, _word, _int, _int, *[_pointer] * 5, _int],
    "egg_bare": [_int, _int, _int, _pointer, _pointer, _int, _pointer],
    "egg_move": [_int, _pointer, _pointer, ctypes.c_int32, _pointer],
}  # fmt: skip


@cache
def supported() -> list[Products]:
    """The products that this processor can compute, the fastest first.

    Raises:
        CompilerMissing: there is no C compiler.
    """
    runs = _library().egg_runs
    return [products for products in get_args(Products) if runs(products.encode())]


class _Egg(ctypes.Structure):
    _fields_ = (
        ("width", _int),
        ("layers", _int),
        *(
            (name, _pointer)
            for name in (
                "matrices", "vectors", "matrix_streams", "vector_streams", "rises", "first", "powers", "log_steps",
                "packed",
            )
        ),
    )  # fmt: skip


class Draw(NamedTuple):
    """Which noise a population has: the run's seed and the noise epoch; sigma is 2 ** -shift."""

    seed: int
    epoch: int
    shift: int


class Readings(NamedTuple):
    """What members made of their bytes: score [N] (int32, 1/16 bits), likelihood [N, T] (int32) and the last logits
    [N, V] (int8)."""

    score_N: Tensor
    likelihood_NT: Tensor
    logits_NV: Tensor


class EggKernel:
    """The weights of one model, shared by its population.

    Args:
        parameters: name -> int8, contiguous, on the CPU; they are read where they are, and ``move`` changes them.
        width: D.
        layers: L.
        products: which instructions multiply; None: the fastest of this processor.

    Raises:
        CompilerMissing: there is no C compiler.
    """

    def __init__(self, parameters: Mapping[str, Tensor], width: int, layers: int, products: Products | None = None):
        self.products = products or supported()[0]
        self.width, self.layers = width, layers
        self.matrices, self.vectors = _names(layers)
        self.parameters = {name: parameters[name].data for name in (*self.matrices, *self.vectors)}
        assert all(weight.is_contiguous() and weight.dtype == torch.int8 for weight in self.parameters.values())
        self._tables = _tables()
        self._pointers = [
            _array(ctypes.c_void_p, [self.parameters[name].data_ptr() for name in names])
            for names in (self.matrices, self.vectors)
        ] + [
            _array(ctypes.c_uint32, [parameter_id(name) << 1 for name in names])
            for names in (self.matrices, self.vectors)
        ]
        places = [*(ctypes.addressof(array) for array in self._pointers), *(t.data_ptr() for t in self._tables)]
        self._egg = _Egg(width, layers, *places, None)
        sizes = (ctypes.c_int64 * 3)()
        self._call("egg_sizes", sizes)
        packed, self._room_size, self.factors = sizes
        self._packed, self._room = _bytes(packed), _bytes(0)
        self._egg.packed = self._packed.data_ptr()
        self._votes: Tensor | None = None
        self.weights_changed()

    def weights_changed(self) -> None:
        """Take up the parameters as they now are."""
        self._call("egg_pack")

    def noise(self, draw: Draw, pairs: range) -> tuple[Tensor, Tensor]:
        """Of K pairs: A and B of every matrix, int8 [K, factors], and of every vector products, int16 [K, n]."""
        factors, products = self._noise_room(len(pairs))
        scratch, threads = _bytes(len(pairs) * 2 * self.width), torch.get_num_threads()
        self._call("egg_noise", *self._key(draw), pairs.start, len(pairs), factors, products, scratch, threads)
        return factors, products

    def read(
        self,
        byte_ST: Tensor,
        state_NLD: Tensor,
        members: range,
        group: int,
        draw: Draw,
        noise: IntegerNoise | None = None,
        details: bool = False,
    ) -> Readings:
        """Let consecutive members read their streams: T - 1 bytes each, the last being only foretold.

        Args:
            byte_ST: uint8 [S, T]; member i reads stream i // group.
            state_NLD: int8, of these members; replaced.
            members: which; the first is even, so that no pair is split.
            noise: of their pairs, in place of what ``draw`` names; ``{}``: none, so that all are the model itself.
            details: also likelihoods and logits; without they are empty.
        """
        count, tokens = len(members), byte_ST.shape[1] - 1
        assert members.start % 2 == 0 and (members.stop - 1) // group < len(byte_ST)
        assert byte_ST.dtype == torch.uint8 and state_NLD.dtype == torch.int8
        assert byte_ST.is_contiguous() and state_NLD.is_contiguous()
        assert state_NLD.shape == (count, self.layers, self.width)
        threads = torch.get_num_threads()
        if len(self._room) < threads * self._room_size:
            self._room = _bytes(threads * self._room_size)
        factors, stride, products, step = self._given(noise)
        score_N = torch.empty(count, dtype=torch.int32)
        likelihood_NT = torch.empty(count if details else 0, tokens, dtype=torch.int32)
        logits_NV = torch.empty(count if details else 0, BYTES, dtype=torch.int8)
        self._call(
            "egg_read", *self._key(draw), factors, stride, products, step, draw.shift, members.start, count, group,
            tokens, byte_ST, state_NLD, score_N, likelihood_NT if details else None, logits_NV if details else None,
            self._room, self._room_size, threads,
        )  # fmt: skip
        return Readings(score_N, likelihood_NT, logits_NV)

    def vote(self, fitness_K: Tensor, draw: Draw) -> dict[str, Tensor]:
        """``sum_k f_k A_k B_k^T`` of every parameter, int32; the tensors are overwritten by the next call.

        Args:
            fitness_K: int8, of all pairs.
        """
        if self._votes is None:
            self._votes = torch.empty(sum(weight.numel() for weight in self.parameters.values()), dtype=torch.int32)
        votes = self._votes.zero_()
        chunk = min(len(fitness_K), max(_PAIRS, _NOISE // self.factors))
        factors, products = self._noise_room(chunk)
        scratch = _bytes(chunk * 2 * self.width)
        for first, some in zip(range(0, len(fitness_K), chunk), fitness_K.split(chunk), strict=True):
            self._call(
                "egg_vote", *self._key(draw), first, len(some), some, votes, factors, products, scratch,
                torch.get_num_threads(),
            )  # fmt: skip
        pieces = votes.split([weight.numel() for weight in self.parameters.values()])
        return {
            name: piece.view(weight.shape)
            for (name, weight), piece in zip(self.parameters.items(), pieces, strict=True)
        }

    def move(self, votes: Mapping[str, Tensor], least: int) -> dict[str, int]:
        """Move weights by one where their votes are at least ``least``; how many of each parameter did."""
        moved = {}
        for name, weight in self.parameters.items():
            count = ctypes.c_int64()
            _function("egg_move", self.products)(
                weight.numel(), weight.data_ptr(), votes[name].data_ptr(), least, ctypes.addressof(count)
            )
            moved[name] = count.value
        self.weights_changed()
        return moved

    def _noise_room(self, pairs: int) -> tuple[Tensor, Tensor]:
        values = len(self.vectors) * self.width
        return torch.empty(pairs, self.factors, dtype=torch.int8), torch.empty(pairs, values, dtype=torch.int16)

    def _given(self, noise: IntegerNoise | None) -> tuple[Tensor | None, int, Tensor | None, int]:
        """Noise as the kernel reads it, and from pair to pair how many elements."""
        if noise is None:
            return None, 0, None, 0
        if not noise:
            factors, products = self._noise_room(1)
            return factors.zero_(), 0, products.zero_(), 0
        sides = [side for name in self.matrices for side in noise[name]]
        factors = torch.cat(sides, dim=1).contiguous()
        products = torch.cat([_vector(noise[name]) for name in self.vectors], dim=1).contiguous()
        return factors, factors.shape[1], products, products.shape[1]

    def _key(self, draw: Draw) -> tuple[int, int, int]:
        return *key_of(draw.seed), draw.epoch

    def _call(self, function: str, *arguments: Any) -> None:
        values = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
        _function(function, self.products)(ctypes.addressof(self._egg), *values)


def bare_products(times: int, width: int, products: Products) -> int:
    """Multiply and add int8 numbers that the caches hold, in all threads, ``times`` over: what is there to reach.

    Returns:
        how many multiplications that was.
    """
    rows, threads = 64, torch.get_num_threads()
    room, count = torch.zeros(2 * rows * width + 64 * width, dtype=torch.int8), ctypes.c_int64()
    inputs, weights = room[: 2 * rows * width], room[2 * rows * width :]
    _function("egg_bare", products)(
        times, rows, width, inputs.data_ptr(), weights.data_ptr(), threads, ctypes.addressof(count)
    )
    return count.value * times * threads


def _vector(noise: RankOne | Tensor) -> Tensor:
    assert isinstance(noise, Tensor)
    return noise.short()


def _names(layers: int) -> tuple[list[str], list[str]]:
    """Matrices and vectors in the kernel's order."""
    matrices, vectors = ["emb", "head"], ["ln_out"]
    for layer in range(layers):
        matrices += [f"layers.{layer}.{name}" for name in ("Wf", "Uf", "Wh", "Uh", "W1", "W2")]
        vectors += [f"layers.{layer}.{name}" for name in ("bf", "bh", "ln1", "ln2")]
    return matrices, vectors


@cache
def _tables() -> tuple[Tensor, ...]:
    """rises, first, powers and log_steps as ``population.c`` describes them."""
    rises = thresholds()
    first = torch.searchsorted(rises, torch.arange(2**12) << 20, right=True).short()
    largest = torch.cat([rises - 1, torch.tensor([2**32 - 1])]).to(torch.uint32)
    return largest, first, powers().int(), log_steps().int()


@cache
def _library() -> ctypes.CDLL:
    library = load_kernels(Path(__file__).with_name("population.c"), anywhere=True)
    library.egg_runs.argtypes = [ctypes.c_char_p]
    return library


@cache
def _function(name: str, products: Products) -> Callable[..., None]:
    """One of ``_SIGNATURES`` as these instructions compute it."""
    function = getattr(_library(), f"{name}_{products}")
    function.argtypes, function.restype = _SIGNATURES[name], None
    return function


def _bytes(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8)


def _array(kind: Any, values: list[int]) -> Any:
    return (kind * len(values))(*values)
