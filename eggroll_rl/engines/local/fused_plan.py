"""The calls of a fused step of RWKV-7: which kernel has which arguments, worked out once for the rows of a batch.

Legend: M rows, D width, H heads, K head size, R inner size of a product.
"""

import ctypes
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from eggroll_rl.es.int8 import Int8Linear, Product
from eggroll_rl.es.lowrank import add_lowrank_
from eggroll_rl.es.perturbation import Factors, Members
from eggroll_rl.models.rwkv7 import RWKV7State

if TYPE_CHECKING:
    from eggroll_rl.engines.local.fused_rwkv import FusedStep

Linear = nn.Linear | Int8Linear
ORDER = "rkvwag"  # of the token-shifted inputs
IDENTITY, TANH, SIGMOID, SQUARED_RELU = range(4)
ACTIVATIONS = {"w": TANH, "a": IDENTITY, "g": SIGMOID, "v": IDENTITY}


class _Members(ctypes.Structure):
    _fields_ = (
        ("pair", ctypes.c_void_p),
        ("coefficient", ctypes.c_void_p),
        ("rank", ctypes.c_int64),
    )


class _Matrix(ctypes.Structure):
    _fields_ = (
        ("a", ctypes.c_void_p),
        ("b", ctypes.c_void_p),
        ("a_stride", ctypes.c_int64),
        ("b_stride", ctypes.c_int64),
        ("c", ctypes.c_void_p),
    )


class _Projections(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in ("r", "k", "v", "decay", "rate", "gate", "value_mix"))


class _TimeMix(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("k_k", "k_a", "r_k", "decay_bias", "rate_bias", "value_mix_bias")),
        ("norm_weight", ctypes.c_void_p),
        ("norm_bias", ctypes.c_void_p),
        ("eps", ctypes.c_float),
    )


class StepPlan:
    """The calls of one step, with all their arguments and buffers, for certain rows of certain members."""

    def __init__(self, step: "FusedStep", state: RWKV7State, members: Members | None, rows: int):
        self.step, self.state, self.members, self.rows = step, state, members, rows
        self.wkv = [tensor.contiguous() for tensor in state.wkv_BHKK if tensor is not None]
        state.wkv_BHKK[:] = self.wkv
        for shifts in (state.att_shift_BD, state.ffn_shift_BD):
            shifts[:] = [tensor.contiguous() for tensor in shifts if tensor is not None]
        self.calls: list[Callable[[], Any]] = []
        self.kept: list[Any] = []  # what the kernels' pointers point to
        self.matrices: dict[Linear, _Matrix] = {}
        self.who = self._members()
        model = step.model.model
        width = step.embedded_VD.shape[1]
        self.x = self._new(width)
        v_first = self._new(width)
        delta: Tensor | None = None
        source: Linear | None = None
        for layer in range(len(model.layers)):
            delta, source = self._block(layer, delta, source, v_first)
        (out,) = self._mix(delta, source, model.norm, self._new(width).zero_(), torch.zeros(1, width), [])
        self.logits = self._product(step.model.lm_head, out)
        self.last = out

    def fits(self, state: RWKV7State, members: Members | None) -> bool:
        return self.state is state and self.members is members and self.wkv[0] is state.wkv_BHKK[0]

    def run(self, token_M: Tensor) -> Tensor:
        torch.index_select(self.step.embedded_VD, 0, token_M, out=self.x)
        for call in self.calls:
            call()
        noise = self._noise(self.step.model.lm_head)
        if noise is not None and self.members is not None:
            add_lowrank_(self.logits, self.last, *noise, self.members.coefficient_M, self.members.pair_M)
        return self.logits

    def _block(self, layer: int, delta: Tensor | None, source: Linear | None, v_first: Tensor) -> tuple[Tensor, Linear]:
        """One layer up to its last product, whose output the next ``mix`` adds to x."""
        block, state = self.step.model.model.layers[layer], self.state
        att, ffn = block.attn, block.ffn
        linears = {"r": att.r_proj, "k": att.k_proj, "v": att.v_proj}
        loras = {"w": att.w_lora.lora, "a": att.a_lora.lora, "g": att.g_lora.lora}
        if layer:
            loras["v"] = att.v_lora.lora
        readers = [*linears.items(), *((name, lora[0]) for name, lora in loras.items())]
        inputs = self._mix(
            delta, source, block.attn_norm, state.att_shift_BD[layer], self.step.mixes[layer],
            [(ORDER.index(name), linear) for name, linear in readers],
        )  # fmt: skip
        input_of = dict(zip(ORDER, inputs, strict=True))
        products = {name: self._product(linear, input_of[name]) for name, linear in linears.items()}
        for name, (down, _, up) in loras.items():
            inner = self._product(down, input_of[name])
            self._activate(inner, ACTIVATIONS[name], down, up)
            products[f"{name}_lora"] = self._product(up, inner)
        y = self._time_mix(layer, products, v_first)
        (mixed,) = self._mix(
            self._product(att.o_proj, y),
            att.o_proj,
            block.ffn_norm,
            state.ffn_shift_BD[layer],
            ffn.x_k.detach()[None],
            [(0, ffn.key)],
        )
        inner = self._product(ffn.key, mixed)
        self._activate(inner, SQUARED_RELU, ffn.key, ffn.value)
        return self._product(ffn.value, inner), ffn.value

    def _mix(
        self, delta: Tensor | None, source: Linear | None, norm: nn.LayerNorm, shift: Tensor | None, mixes: Tensor,
        readers: Sequence[tuple[int, Linear]],
    ) -> Tensor:  # fmt: skip
        """[outputs, M, D]: the norm of x + delta, mixed with each row's last token; ``readers`` read which output."""
        assert shift is not None
        out = torch.empty(len(mixes), *self.x.shape)
        weight, bias, mixes = (tensor.detach().float() for tensor in (norm.weight, norm.bias, mixes))
        matrices = (_Matrix * len(readers))(*(self._matrix(linear) for _, linear in readers))
        inputs = (ctypes.c_int64 * len(readers))(*(output for output, _ in readers))
        self._call(
            self.step.kernels.mix, *_sizes(self.rows, self.x.shape[1]), self.x, delta, self._matrix(source),
            weight, bias, ctypes.c_float(norm.eps), shift, *_sizes(len(mixes)), mixes, out,
            *_sizes(len(readers)), matrices, inputs,
        )  # fmt: skip
        return out

    def _activate(self, inner: Tensor, kind: int, before: Linear, after: Linear) -> None:
        sizes = _sizes(self.rows, inner.shape[1])
        self._call(self.step.kernels.activate, *sizes, inner, *_sizes(kind), self._matrix(before), self._matrix(after))

    def _time_mix(self, layer: int, products: dict[str, Tensor], v_first: Tensor) -> Tensor:
        att = self.step.model.model.layers[layer].attn
        value_bias = att.v_lora.lora[2].bias if layer else None
        projections = _Projections(
            *(_pointer(products.get(name)) for name in ("r", "k", "v", "w_lora", "a_lora", "g_lora", "v_lora"))
        )
        biases = (att.w_lora.lora[2].bias, att.a_lora.lora[2].bias, value_bias)
        vectors = [
            None if vector is None else vector.detach().float()
            for vector in (att.k_k, att.k_a, att.r_k, *biases, att.g_norm.weight, att.g_norm.bias)
        ]
        weights = _TimeMix(*map(_pointer, vectors), att.g_norm.eps)
        ups = [lora.lora[2] for lora in (att.w_lora, att.a_lora, att.g_lora)] + [att.v_lora.lora[2] if layer else None]
        owners = [att.r_proj, att.k_proj, att.v_proj, *ups, att.o_proj]
        matrices = (_Matrix * len(owners))(*(self._matrix(owner) for owner in owners))
        y, (heads, size) = self._new(self.x.shape[1]), att.r_k.shape
        self.kept.append((products, vectors))
        self._call(
            self.step.kernels.time_mix, *_sizes(self.rows, heads, size), ctypes.byref(projections),
            ctypes.byref(weights), matrices, self.wkv[layer], v_first, y,
        )  # fmt: skip
        return y

    def _product(self, linear: Linear, x: Tensor) -> Tensor:
        if isinstance(linear, Int8Linear):
            product = Product(linear.matrix, self.rows)
            self.calls.append(partial(product, x))
            return product.y_MO
        out, weight_IO = self._new(linear.out_features), linear.weight.detach().mT
        if weight_IO.dtype == torch.float32:
            self.calls.append(partial(torch.mm, x, weight_IO, out=out))
            return out
        rounded, made = x.to(weight_IO.dtype), out.to(weight_IO.dtype)
        self.calls += [
            partial(rounded.copy_, x),
            partial(torch.mm, rounded, weight_IO, out=made),
            partial(out.copy_, made),
        ]
        return out

    def _call(self, kernel: Any, *args: Any) -> None:
        self.kept.append(args)
        pointers = [ctypes.byref(self.who), *(_argument(arg) for arg in args)]
        self.calls.append(partial(kernel, *pointers))

    def _new(self, size: int) -> Tensor:
        return torch.empty(self.rows, size)

    def _noise(self, linear: Linear | None) -> Factors | None:
        if self.members is None or linear is None:
            return None
        noise = self.members.noise.get(self.step.names[linear])
        return noise if isinstance(noise, Factors) else None

    def _matrix(self, linear: Linear | None) -> _Matrix:
        """A matrix's noise and its room for c; all NULL where it does not evolve."""
        noise = self._noise(linear)
        if linear is None or noise is None:
            return _Matrix()
        if linear not in self.matrices:
            c = self._new(noise.A_KOr.shape[2])
            self.kept.append((noise, c))
            self.matrices[linear] = _Matrix(
                _pointer(noise.A_KOr), _pointer(noise.B_KIr), noise.A_KOr.stride(0), noise.B_KIr.stride(0), _pointer(c)
            )
        return self.matrices[linear]

    def _members(self) -> _Members:
        if self.members is None:
            return _Members()
        noise = next(noise for noise in self.members.noise.values() if isinstance(noise, Factors))
        pairs, _, rank = noise.A_KOr.shape
        pair_M = self.members.pair_M
        if pair_M is None:
            pair_M = torch.arange(pairs).repeat_interleave(self.rows // pairs)
        self.kept.append(pair_M)
        return _Members(_pointer(pair_M), _pointer(self.members.coefficient_M), rank)


def _sizes(*values: int) -> list[ctypes.c_int64]:
    return [ctypes.c_int64(value) for value in values]


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _argument(value: Any) -> Any:
    if isinstance(value, Tensor) or value is None:
        return ctypes.c_void_p(_pointer(value))
    return ctypes.byref(value) if isinstance(value, _Matrix) else value
