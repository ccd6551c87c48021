"""The calls of a fused step of RWKV-7: which kernel has which arguments, worked out once for the rows of a batch.

Legend: M rows, U prefixes of rows, S rows of scratch, D width, H heads, K head size, R inner size of a product.
"""

import ctypes
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from eggroll_rl.engines.local.prefixes import Prefixes
from eggroll_rl.es.int8 import Int8Linear, Product
from eggroll_rl.es.perturbation import Dense, Factors, Members
from eggroll_rl.models.rwkv7 import RWKV7State

if TYPE_CHECKING:
    from eggroll_rl.engines.local.fused_rwkv import FusedStep

Linear = nn.Linear | Int8Linear
ORDER = "rkvwag"  # of the token-shifted inputs
IDENTITY, TANH, SIGMOID, SQUARED_RELU = range(4)
ACTIVATIONS = {"w": TANH, "a": IDENTITY, "g": SIGMOID, "v": IDENTITY}
BLOCK = 64  # rows of a core at most: what is between two products stays in its cache
LEAST = 16  # rows for each core from which each takes blocks of its own


def _structure(name: str, **fields: Any) -> Any:
    """A struct of ``fused_rwkv.c``: members by their ctype, or by how many pointers they are."""
    return type(name, (ctypes.Structure,), {"_fields_": tuple(fields.items())})


_SIZE, _POINTER, _FLOAT = ctypes.c_int64, ctypes.c_void_p, ctypes.c_float
_Call = _structure("Call", kernel=_POINTER, arguments=_POINTER, panels=_SIZE)
_Members = _structure("Members", pair=_POINTER, coefficient=_POINTER, dense=_POINTER, rank=_SIZE)
_Matrix = _structure("Matrix", a=_POINTER, b=_POINTER, a_stride=_SIZE, b_stride=_SIZE, c=_POINTER)
_Vector = _structure("Vector", value=_POINTER, noise=_POINTER, stride=_SIZE)
_Embed = _structure("Embed", D=_SIZE, token=_POINTER, embedded=_POINTER, x=_POINTER)
_Product = _structure("Product", I=_SIZE, O=_SIZE, x=_POINTER, w=_POINTER, y=_POINTER, whole=_SIZE)
_Mix = _structure(
    "Mix", who=_POINTER, S=_SIZE, D=_SIZE, x=_POINTER, delta=_POINTER, source=_Matrix, norm_weight=_Vector,
    norm_bias=_Vector, eps=_FLOAT, shift=_POINTER, outputs=_SIZE, mixes=_POINTER, out=_POINTER, matrices=_SIZE,
    matrix=_POINTER, input=_POINTER,
)  # fmt: skip
_Activate = _structure("Activate", who=_POINTER, R=_SIZE, h=_POINTER, kind=_SIZE, before=_Matrix, after=_Matrix)
_Answer = _structure(
    "Answer", who=_POINTER, D=_SIZE, V=_SIZE, x=_POINTER, read=_POINTER, logits=_POINTER, start=_POINTER, row=_POINTER,
    head=_Matrix,
)  # fmt: skip
_TIME_MIX_PRODUCTS = ("r", "k", "v", "w_lora", "a_lora", "g_lora", "v_lora")
_TimeMix = _structure(
    "TimeMix", who=_POINTER, H=_SIZE, K=_SIZE, **dict.fromkeys(_TIME_MIX_PRODUCTS, _POINTER),
    **dict.fromkeys(("k_k", "k_a", "r_k", "norm_weight", "norm_bias"), _POINTER),
    **dict.fromkeys(("decay_bias", "rate_bias", "value_mix_bias"), _Vector),
    eps=_FLOAT, matrix=_Matrix * 8, state=_POINTER, v_first=_POINTER, y=_POINTER,
)  # fmt: skip


class StepPlan:
    """The calls of one step, with all their arguments and buffers, for certain rows of certain members.

    Where all products are C's, each core takes blocks of rows through the whole step, and scratch has the rows of these
    blocks; else the step goes to torch for its products, and scratch has all rows.

    Args:
        rows: of the batch.
        shares: whether a step is given prefixes, at most ``rows``, and who has which of them.
    """

    def __init__(self, step: "FusedStep", state: RWKV7State, members: Members | None, rows: int, shares: bool):
        self.step, self.state, self.members, self.rows, self.shares = step, state, members, rows, shares
        self.wkv = [tensor.contiguous() for tensor in state.wkv_BHKK if tensor is not None]
        state.wkv_BHKK[:] = self.wkv
        for shifts in (state.att_shift_BD, state.ffn_shift_BD):
            shifts[:] = [tensor.contiguous() for tensor in shifts if tensor is not None]
        self.threads = torch.get_num_threads()
        self.scratch = scratch_of(rows, self.threads) if step.is_packed else rows
        self.calls: list[Callable[[], Any]] = []
        self.kept: list[Any] = []  # what the kernels' pointers point to
        self.pending: list[Any] = []  # calls of kernels since the last of torch's
        self.buffers: dict[tuple[str, int], Tensor] = {}
        self.matrices: dict[Linear, Any] = {}
        self.who = self._members()
        self.live = rows  # of the state: prefixes, or the batch's rows
        self.token, self.row = torch.empty(rows, dtype=torch.long), torch.arange(rows)
        self.start = torch.arange(rows + 1)
        self._plan()

    def fits(self, state: RWKV7State, members: Members | None, rows: int, shares: bool) -> bool:
        is_same = self.state is state and self.members is members and self.wkv[0] is state.wkv_BHKK[0]
        return is_same and (self.rows, self.shares) == (rows, shares)

    def run(self, token_U: Tensor, prefixes: Prefixes | None, answers: bool) -> Tensor:
        """Logits [M, V] after one more token; where nothing ``answers``, what is in there is left."""
        self.live = len(token_U)
        self.token[: self.live] = token_U
        if prefixes and answers:
            self.row[:], self.start[: self.live + 1] = prefixes.rows()
        for call in self.calls if answers else self.calls_of_reading:
            call()
        return self.logits

    def _plan(self) -> None:
        model, head = self.step.model.model, self.step.model.lm_head
        embedded_VD = self.step.embedded_VD
        width = embedded_VD.shape[1]
        self.x = self._buffer("x", width)
        self._call("embed", _Embed(width, *map(_pointer, (self.token, embedded_VD, self.x))))
        delta: Tensor | None = None
        source: Linear | None = None
        for layer in range(len(model.layers)):
            delta, source = self._block(layer, delta, source)
        (out,) = self._mix("last", delta, source, model.norm, None, None, [])
        self.calls_of_reading = [*self.calls, self._in_c()]
        read = self._product(head, out, torch.empty(self.rows, head.out_features))
        self.logits = torch.empty_like(read) if self.shares else read
        if self.shares or self._noise(head):
            tensors = (out, read, self.logits, self.start, self.row)
            self.kept.append(tensors)
            self._call("answer", _Answer(
                self._who, width, head.out_features, *map(_pointer, tensors), self._matrix(head)
            ))  # fmt: skip
        self._flush()

    def _block(self, layer: int, delta: Tensor | None, source: Linear | None) -> tuple[Tensor, Linear]:
        """One layer up to its last product, whose output the next ``mix`` adds to x."""
        block, state = self.step.model.model.layers[layer], self.state
        att, ffn = block.attn, block.ffn
        linears = {"r": att.r_proj, "k": att.k_proj, "v": att.v_proj}
        loras = {"w": att.w_lora.lora, "a": att.a_lora.lora, "g": att.g_lora.lora}
        if layer:
            loras["v"] = att.v_lora.lora
        readers = [*linears.items(), *((name, lora[0]) for name, lora in loras.items())]
        inputs = self._mix(
            "att", delta, source, block.attn_norm, state.att_shift_BD[layer], self.step.mixes[layer],
            [(ORDER.index(name), linear) for name, linear in readers],
        )  # fmt: skip
        input_of = dict(zip(ORDER, inputs, strict=True))
        products = {name: self._product(linear, input_of[name], name) for name, linear in linears.items()}
        for name, (down, _, up) in loras.items():
            inner = self._product(down, input_of[name], "inner")
            self._activate(inner, ACTIVATIONS[name], down, up)
            products[f"{name}_lora"] = self._product(up, inner, f"{name}_lora")
        y = self._time_mix(layer, products)
        (mixed,) = self._mix(
            "ffn",
            self._product(att.o_proj, y, "delta"),
            att.o_proj,
            block.ffn_norm,
            state.ffn_shift_BD[layer],
            ffn.x_k.detach()[None],
            [(0, ffn.key)],
        )
        inner = self._product(ffn.key, mixed, "inner")
        self._activate(inner, SQUARED_RELU, ffn.key, ffn.value)
        return self._product(ffn.value, inner, "delta"), ffn.value

    def _mix(
        self, name: str, delta: Tensor | None, source: Linear | None, norm: nn.LayerNorm, shift: Tensor | None,
        mixes: Tensor | None, readers: Sequence[tuple[int, Linear]],
    ) -> Tensor:  # fmt: skip
        """[outputs, S, D]: the norm of x + delta, mixed with each row's last token; ``readers`` read which output."""
        width, outputs = self.x.shape[1], 1 if mixes is None else len(mixes)
        out = self._buffer(name, outputs * width).view(outputs, self.scratch, width)
        mixes = None if mixes is None else mixes.detach().float()
        matrices = (_Matrix * len(readers))(*(self._matrix(linear) for _, linear in readers))
        inputs = (_SIZE * len(readers))(*(output for output, _ in readers))
        self.kept += [mixes, matrices, inputs]
        self._call("mix", _Mix(
            self._who, self.scratch, width, _pointer(self.x), _pointer(delta), self._matrix(source),
            self._vector(norm.weight), self._vector(norm.bias), norm.eps, _pointer(shift), outputs, _pointer(mixes),
            _pointer(out), len(readers), ctypes.addressof(matrices), ctypes.addressof(inputs),
        ))  # fmt: skip
        return out

    def _activate(self, h: Tensor, kind: int, before: Linear, after: Linear) -> None:
        if kind == IDENTITY and self._noise(before) is None and self._noise(after) is None:
            return
        noise = self._matrix(before), self._matrix(after)
        self._call("activate", _Activate(self._who, h.shape[1], _pointer(h), kind, *noise))

    def _time_mix(self, layer: int, products: dict[str, Tensor]) -> Tensor:
        att = self.step.model.model.layers[layer].attn
        value_bias = att.v_lora.lora[2].bias if layer else None
        biases = (att.w_lora.lora[2].bias, att.a_lora.lora[2].bias, value_bias)
        vectors = [v.detach().float() for v in (att.k_k, att.k_a, att.r_k, att.g_norm.weight, att.g_norm.bias)]
        ups = [lora.lora[2] for lora in (att.w_lora, att.a_lora, att.g_lora)] + [att.v_lora.lora[2] if layer else None]
        owners = [att.r_proj, att.k_proj, att.v_proj, *ups, att.o_proj]
        y, v_first = self._buffer("y", self.x.shape[1]), self._buffer("v_first", self.x.shape[1])
        self.kept.append(vectors)
        self._call("time_mix", _TimeMix(
            self._who, *att.r_k.shape, *(_pointer(products.get(name)) for name in _TIME_MIX_PRODUCTS),
            *map(_pointer, vectors), *map(self._vector, biases), att.g_norm.eps,
            (_Matrix * 8)(*map(self._matrix, owners)), *map(_pointer, (self.wkv[layer], v_first, y)),
        ))  # fmt: skip
        return y

    def _product(self, linear: Linear, x: Tensor, y: str | Tensor) -> Tensor:
        """[S, O]: the product, in the buffer of this name or in a tensor of all rows."""
        out = self._buffer(y, linear.out_features) if isinstance(y, str) else y
        packed = self.step.packed.get(linear)
        if packed is not None:
            arguments = _Product(linear.in_features, len(linear.weight), *map(_pointer, (x, packed, out)), out is y)
            self._call("product", arguments, len(packed))
            return out
        self._flush()
        if isinstance(linear, Int8Linear):
            product = Product(linear.matrix, self.rows)
            self.calls.append(partial(product, x))
            return product.y_MO
        weight_IO = linear.weight.detach().mT
        rounded, made = x.to(weight_IO.dtype), out.to(weight_IO.dtype)
        self.calls += [
            partial(rounded.copy_, x),
            partial(torch.mm, rounded, weight_IO, out=made),
            partial(out.copy_, made),
        ]
        return out

    def _call(self, kernel: str, arguments: Any, panels: int = 0) -> None:
        self.kept.append(arguments)
        function = ctypes.cast(getattr(self.step.kernels, kernel), _POINTER)
        self.pending.append(_Call(function, ctypes.addressof(arguments), panels))

    def _flush(self) -> None:
        """Let what C does from the last product of torch's on be one call."""
        if self.pending:
            self.calls.append(self._in_c())
            self.pending = []

    def _in_c(self) -> Callable[[], Any]:
        """What C does from the last product of torch's on."""
        return partial(self._run_in_c, (_Call * len(self.pending))(*self.pending))

    def _run_in_c(self, calls: "ctypes.Array[Any]") -> None:
        block = block_of(self.live, self.threads) if self.step.is_packed else 0
        self.step.kernels.run(calls, *map(_SIZE, (len(calls), self.live, block, self.threads)))

    def _buffer(self, name: str, size: int) -> Tensor:
        """Scratch [S, size], the same for all layers."""
        if (name, size) not in self.buffers:
            self.buffers[name, size] = torch.empty(self.scratch, size)
        return self.buffers[name, size]

    def _noise(self, linear: Linear | None) -> Factors | None:
        if self.members is None or linear is None:
            return None
        noise = self.members.noise.get(self.step.names[linear])
        return noise if isinstance(noise, Factors) else None

    def _matrix(self, linear: Linear | None) -> Any:
        """A matrix's noise and its room for c; all NULL where it does not evolve."""
        noise = self._noise(linear)
        if linear is None or noise is None:
            return _Matrix()
        if linear not in self.matrices:
            c = torch.empty(self.scratch, noise.A_KOr.shape[2])
            self.kept.append((noise, c))
            self.matrices[linear] = _Matrix(
                _pointer(noise.A_KOr), _pointer(noise.B_KIr), noise.A_KOr.stride(0), noise.B_KIr.stride(0), _pointer(c)
            )
        return self.matrices[linear]

    def _vector(self, parameter: Tensor | None) -> Any:
        """A vector and its noise."""
        if parameter is None:
            return _Vector()
        value = parameter.detach().float()
        self.kept.append(value)
        noise = None if self.members is None else self.members.noise.get(self.step.vectors[parameter])
        if not isinstance(noise, Dense):
            return _Vector(_pointer(value))
        self.kept.append(noise)
        return _Vector(_pointer(value), _pointer(noise.E_K), noise.E_K.stride(0))

    @property
    def _who(self) -> int:
        return ctypes.addressof(self.who)

    def _members(self) -> Any:
        if self.members is None:
            return _Members()
        noise = list(self.members.noise.values())
        pair_M = self.members.pairs_of_rows(len(noise[0].tensors()[0]))
        self.kept.append(pair_M)
        rank = next((factors.A_KOr.shape[2] for factors in noise if isinstance(factors, Factors)), 1)
        coefficients = self.members.coefficient_M, self.members.dense_coefficient_M
        return _Members(_pointer(pair_M), *map(_pointer, coefficients), rank)


def block_of(rows: int, threads: int) -> int:
    """Rows of a block, so that each of so many threads has equally many; 0: too few rows for blocks."""
    if rows < LEAST * threads:
        return 0
    blocks = -(-rows // (BLOCK * threads)) * threads
    return -(-rows // (4 * blocks)) * 4


def scratch_of(rows: int, threads: int) -> int:
    """Rows of scratch that each block of at most so many rows has room in, on each thread."""
    return rows if rows < LEAST * threads else min(BLOCK, -(-rows // (4 * threads)) * 4) * threads


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
