"""Decoding steps whose tensors keep their addresses, so that a CUDA graph can hold them: a token of all rows costs one
launch, where an ordinary forward pass costs hundreds.

Keys and values have room for the whole answer and every token attends over all of it, under a mask; the rows are
rounded up to one of few sizes, with a graph for each. Uncaptured, the same steps run on any device.

Legend: M rows of a batch, R rows of a step (M rounded up), T tokens, C capacity in tokens, V vocabulary.
"""

import logging
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from eggroll_rl.engines.local.cache import RoomyLayer, new_cache
from eggroll_rl.es.layers import PopulationLayers
from eggroll_rl.es.perturbation import Members
from eggroll_rl.models.rwkv7 import RWKV7ForCausalLM, RWKV7State

logger = logging.getLogger(__name__)

TOKENS = 128  # capacities are multiples of it, so that prompts of about the same length share their graphs
WARMUPS = 2  # runs before a capture: kernels compile, libraries allocate


class Memory(Protocol):
    """What a model keeps of R answers, where it stays."""

    def prompt(self, mask_MT: Tensor) -> dict[str, Any]:
        """A new batch: arguments of the model for the prompts."""
        ...

    def take(self, cache: Any) -> None:
        """Store what the model gave back, at the prompt's end or within a step."""
        ...

    def advance(self) -> None:
        """Make room for one more token."""
        ...

    def token(self, rows: int) -> dict[str, Any]:
        """Arguments of the model for one token of so many rows."""
        ...

    def keep(self, index_M: Tensor) -> None:
        """Move these rows to the front."""
        ...

    def tensors(self, rows: int) -> list[Tensor]:
        """What a step changes beyond writing the same again when it is repeated."""
        ...

    def room(self) -> list[Tensor]:
        """All that grows with the rows."""
        ...


class StaticLayer(DynamicLayer):
    """Keys and values [R, heads, C, size]: the prompt's at the front, then one token's at ``slot``."""

    def __init__(self, rows: int, capacity: int, slot: Tensor):
        super().__init__()
        self.room, self.slot, self.live = (rows, capacity), slot, 0  # live: rows of a step, 0 during the prompt

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        rows, capacity = self.room
        self.keys, self.values = (
            states.new_zeros(rows, states.shape[1], capacity, states.shape[3]) for states in (key_states, value_states)
        )  # zeros: a masked value counts zero times, which not a number would survive

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self.keys, self.values
        assert keys is not None and values is not None
        if not self.live:
            rows, _, tokens, _ = key_states.shape
            keys[:rows, :, :tokens], values[:rows, :, :tokens] = key_states, value_states
            return key_states, value_states
        keys, values = keys[: self.live], values[: self.live]
        keys.index_copy_(2, self.slot, key_states)
        values.index_copy_(2, self.slot, value_states)
        return keys, values

    def get_seq_length(self) -> int:
        return 0  # the prompt comes whole; afterwards positions and masks are given


class AttentionMemory:
    """Keys, values, positions and the mask of a transformer whose layers all attend to everything."""

    def __init__(self, model: PreTrainedModel, rows: int, capacity: int):
        self.slot = torch.zeros(1, dtype=torch.long, device=model.device)
        self.position_R1 = torch.zeros(rows, 1, dtype=torch.long, device=model.device)
        self.hidden = torch.finfo(model.dtype).min
        self.mask_R11C = torch.full((rows, 1, 1, capacity), self.hidden, dtype=model.dtype, device=model.device)
        self.cache = DynamicCache(config=model.config)
        self.layers = [StaticLayer(rows, capacity, self.slot) for _ in self.cache.layers]
        self.cache.layers = list(self.layers)

    def prompt(self, mask_MT: Tensor) -> dict[str, Any]:
        rows, tokens = mask_MT.shape
        self.slot.fill_(tokens - 1)
        self.mask_R11C.fill_(self.hidden)
        self.mask_R11C[:rows, 0, 0, :tokens].masked_fill_(mask_MT.bool(), 0)
        self.position_R1.zero_()
        self.position_R1[:rows] = mask_MT.sum(1, keepdim=True) - 1
        self._serve(0)
        positions = (mask_MT.cumsum(1) - 1).clamp_min(0)
        return {"attention_mask": mask_MT, "position_ids": positions, "past_key_values": self.cache}

    def take(self, cache: Any) -> None:
        """The layers have it already."""

    def advance(self) -> None:
        self.slot += 1
        self.position_R1 += 1
        self.mask_R11C.index_fill_(3, self.slot, 0)

    def token(self, rows: int) -> dict[str, Any]:
        self._serve(rows)
        return {
            "attention_mask": self.mask_R11C[:rows],
            "position_ids": self.position_R1[:rows],
            "past_key_values": self.cache,
        }

    def keep(self, index_M: Tensor) -> None:
        for tensor in self.room():
            _gather(tensor, index_M)

    def tensors(self, rows: int) -> list[Tensor]:
        return []

    def room(self) -> list[Tensor]:
        layers = [tensor for layer in self.layers for tensor in (layer.keys, layer.values) if tensor is not None]
        return [*layers, self.position_R1, self.mask_R11C]

    def _serve(self, rows: int) -> None:
        for layer in self.layers:
            layer.live = rows


class RecurrentMemory:
    """The state of an RWKV-7."""

    def __init__(self, model: RWKV7ForCausalLM, rows: int):
        config = model.config
        width, heads, size = config.hidden_size, config.num_heads, config.head_dim
        new = partial(torch.zeros, rows, width, dtype=model.dtype, device=model.device)
        self.state = RWKV7State(config.num_hidden_layers)
        self.state.att_shift_BD = [new() for _ in model.model.layers]
        self.state.ffn_shift_BD = [new() for _ in model.model.layers]
        self.state.wkv_BHKK = [torch.zeros(rows, heads, size, size, device=model.device) for _ in model.model.layers]

    def prompt(self, mask_MT: Tensor) -> dict[str, Any]:
        return {"attention_mask": mask_MT}

    def take(self, cache: RWKV7State) -> None:
        for own, new in zip(_tensors(self.state), _tensors(cache), strict=True):
            if own.data_ptr() != new.data_ptr():
                own[: len(new)] = new

    def advance(self) -> None:
        """The state has one size."""

    def token(self, rows: int) -> dict[str, Any]:
        view = RWKV7State(len(self.state.wkv_BHKK))
        for name in ("att_shift_BD", "ffn_shift_BD", "wkv_BHKK"):
            setattr(view, name, [None if tensor is None else tensor[:rows] for tensor in getattr(self.state, name)])
        return {"past_key_values": view}

    def keep(self, index_M: Tensor) -> None:
        for tensor in _tensors(self.state):
            _gather(tensor, index_M)

    def tensors(self, rows: int) -> list[Tensor]:
        return [tensor[:rows] for tensor in self.room()]

    def room(self) -> list[Tensor]:
        return _tensors(self.state)


class Captured(NamedTuple):
    """A CUDA graph and the tensor that it leaves its logits in."""

    graph: Any
    logits_RV: Tensor


class StaticStep:
    """Answers of up to ``rows`` rows and ``capacity`` tokens, prompts included.

    Args:
        model: its forward pass is the step.
        layers: the model's hooks; who is active there at a call is who is in the rows.
        rows: of the largest batch.
        capacity: tokens of a row, prompt and answer; a multiple of ``TOKENS``.
        capture: hold the steps in CUDA graphs.
    """

    def __init__(self, model: PreTrainedModel, layers: PopulationLayers, rows: int, capacity: int, capture: bool):
        self.model, self.layers, self.rows, self.capacity, self.capture = model, layers, rows, capacity, capture
        self.memory = new_memory(model, rows, capacity)
        self.token_R1 = torch.zeros(rows, 1, dtype=torch.long, device=model.device)
        self.pair_R = torch.zeros(rows, dtype=torch.long, device=model.device)
        self.coefficients_R = torch.zeros(2, rows, dtype=model.dtype, device=model.device)  # low-rank, dense
        self.graphs: dict[tuple[int, tuple[int, ...]], Captured] = {}
        self.bound: Members | None = None
        self.addresses: tuple[int, ...] = ()
        self.live = 0  # rows of the batch, 0 before its prompts

    def holds(self, rows: int, capacity: int) -> bool:
        """Whether such a batch fits, without attending over more than twice its room."""
        return rows <= self.rows and capacity <= self.capacity < 2 * capacity

    def nbytes(self) -> int:
        """Bytes of what it keeps of its rows."""
        return sum(tensor.nbytes for tensor in self.memory.room())

    def begin(self) -> "StaticStep":
        """Get ready for the prompts of a new batch."""
        self.live, self.bound, self.addresses = 0, None, ()
        return self

    def __call__(self, token_MT: Tensor, mask_MT: Tensor) -> Tensor:
        """Logits [M, V] after the prompts, or after one more token; the next call overwrites them."""
        if self.live:
            return self._token(token_MT)
        self.live = len(token_MT)
        self.size = size_of(self.live, self.rows)
        outputs = self.model(input_ids=token_MT, use_cache=True, logits_to_keep=1, **self.memory.prompt(mask_MT))
        self.memory.take(outputs.past_key_values)
        return outputs.logits[:, -1]

    def batch_select_indices(self, index_M: Tensor) -> None:
        """Keep these rows of the batch, in smaller steps where they fit."""
        self.memory.keep(index_M)
        self.live = len(index_M)
        self.size = size_of(self.live, self.rows)

    def _token(self, token_M1: Tensor) -> Tensor:
        self.token_R1[: self.live] = token_M1
        self._bind(self.layers.active)
        self.memory.advance()
        key = (self.size, self.addresses)
        if self.capture and key not in self.graphs:
            self._capture(key)
        if not self.capture:
            return self._run()[: self.live]
        captured = self.graphs[key]
        captured.graph.replay()
        return captured.logits_RV[: self.live]

    def _bind(self, active: Members | None) -> None:
        """Copy whose rows they are to where the steps look; rows beyond the batch belong to the unperturbed model."""
        if active is self.bound:
            return
        self.bound, self.addresses = active, _addresses(active)
        if active is None:
            return
        self.coefficients_R.zero_()
        self.pair_R.zero_()
        assert active.pair_M is not None, "the noise is of all pairs of the population"
        self.pair_R[: self.live] = active.pair_M
        for own, given in zip(self.coefficients_R, (active.coefficient_M, active.dense_coefficient_M), strict=True):
            if given is not None:
                own[: self.live] = given

    def _run(self) -> Tensor:
        """The step itself."""
        size = self.size
        who: AbstractContextManager[None] = nullcontext()
        if self.bound is not None:
            lowrank_R, dense_R = self.coefficients_R[:, :size]
            who = self.layers.members(self.bound.noise, lowrank_R, self.pair_R[:size], dense_R)
        with who:
            outputs = self.model(
                input_ids=self.token_R1[:size], use_cache=True, logits_to_keep=1, **self.memory.token(size)
            )
        self.memory.take(outputs.past_key_values)
        return outputs.logits[:, -1]

    def _capture(self, key: tuple[int, tuple[int, ...]]) -> None:
        self.graphs = {other: kept for other, kept in self.graphs.items() if other[1] in ((), key[1])}
        saved = [tensor.clone() for tensor in self.memory.tensors(self.size)]
        try:
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(WARMUPS):
                    self._run()
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            pool = next((captured.graph.pool() for captured in self.graphs.values()), None)  # one replays at a time
            with torch.cuda.graph(graph, pool=pool):
                logits_RV = self._run()
            self.graphs[key] = Captured(graph, logits_RV)
        except RuntimeError as reason:
            logger.warning("decoding without CUDA graphs, one launch for each operation: %s", reason)
            self.capture = False
        for tensor, before in zip(self.memory.tensors(self.size), saved, strict=True):
            tensor.copy_(before)


def new_memory(model: PreTrainedModel, rows: int, capacity: int) -> Memory:
    if isinstance(model, RWKV7ForCausalLM):
        return RecurrentMemory(model, rows)
    return AttentionMemory(model, rows, capacity)


def can_be_static(model: PreTrainedModel) -> bool:
    """Whether a model's steps can keep their addresses: an RWKV-7, or attention without windows or other state."""
    if isinstance(model, RWKV7ForCausalLM):
        return True
    cache = new_cache(model.config, TOKENS)
    return cache is not None and all(type(layer) is RoomyLayer for layer in cache.layers)


def size_of(rows: int, largest: int) -> int:
    """``rows`` rounded up to four sizes an octave (..., 8, 10, 12, 14, 16, 20, ...), at most ``largest``."""
    step = max(1, 2 ** ((rows - 1).bit_length() - 3)) if rows > 1 else 1
    return min(largest, -(-rows // step) * step)


def _gather(tensor: Tensor, index_M: Tensor) -> None:
    tensor[: len(index_M)] = tensor.index_select(0, index_M)


def _tensors(state: RWKV7State) -> list[Tensor]:
    layers = (*state.att_shift_BD, *state.ffn_shift_BD, *state.wkv_BHKK)
    return [tensor for tensor in layers if tensor is not None]


def _addresses(active: Members | None) -> tuple[int, ...]:
    """Where the members' noise lies, which a graph reads there."""
    if active is None:
        return ()
    return tuple(tensor.data_ptr() for noise in active.noise.values() for tensor in noise.tensors())
