"""What models keep of the rows of a batch, in tensors that stay where they are: room for the whole answer.

Legend: M rows of a batch, R rows that there is room for, T tokens, C capacity in tokens.
"""

from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from eggroll_rl.engines.local.cache import new_cache
from eggroll_rl.engines.local.state import masks_padding, state_name
from eggroll_rl.models.rwkv7 import RWKV7ForCausalLM, RWKV7State


class Memory(Protocol):
    """What a model keeps of R answers, where it stays."""

    attends: bool  # to all tokens, so that each needs room

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

    attends = True

    def __init__(self, model: PreTrainedModel, rows: int, capacity: int):
        self.name = state_name(model) or ""
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
        return {"attention_mask": mask_MT, "position_ids": positions, self.name: self.cache}

    def take(self, cache: Any) -> None:
        """Nothing to store: the layers have written their keys and values."""

    def advance(self) -> None:
        self.slot += 1
        self.position_R1 += 1
        self.mask_R11C.index_fill_(3, self.slot, 0)

    def token(self, rows: int) -> dict[str, Any]:
        self._serve(rows)
        return {
            "attention_mask": self.mask_R11C[:rows],
            "position_ids": self.position_R1[:rows],
            self.name: self.cache,
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

    attends = False

    def __init__(self, model: RWKV7ForCausalLM, rows: int):
        config, self.name = model.config, state_name(model) or ""
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
        """Nothing to do: the state has one size, however many tokens."""

    def token(self, rows: int) -> dict[str, Any]:
        view = RWKV7State(len(self.state.wkv_BHKK))
        for name in ("att_shift_BD", "ffn_shift_BD", "wkv_BHKK"):
            setattr(view, name, [None if tensor is None else tensor[:rows] for tensor in getattr(self.state, name)])
        return {self.name: view}

    def keep(self, index_M: Tensor) -> None:
        for tensor in _tensors(self.state):
            _gather(tensor, index_M)

    def tensors(self, rows: int) -> list[Tensor]:
        return [tensor[:rows] for tensor in self.room()]

    def room(self) -> list[Tensor]:
        return _tensors(self.state)


def new_memory(model: PreTrainedModel, rows: int, capacity: int) -> Memory:
    """Room for so many rows and tokens of a model that ``can_be_static``."""
    if isinstance(model, RWKV7ForCausalLM):
        return RecurrentMemory(model, rows)
    return AttentionMemory(model, rows, capacity)


def can_be_static(model: PreTrainedModel) -> bool:
    """Whether a model's steps can keep their addresses: an RWKV-7, or attention without windows or other state."""
    if isinstance(model, RWKV7ForCausalLM):
        return True
    layers = new_cache(model.config).layers
    return masks_padding(model) and all(type(layer) is DynamicLayer for layer in layers)


def _gather(tensor: Tensor, index_M: Tensor) -> None:
    tensor[: len(index_M)] = tensor.index_select(0, index_M)


def _tensors(state: RWKV7State) -> list[Tensor]:
    layers = (*state.att_shift_BD, *state.ffn_shift_BD, *state.wkv_BHKK)
    return [tensor for tensor in layers if tensor is not None]
