"""A key-value cache with room for the whole answer, so that a token costs writing one token.

transformers' dynamic cache copies everything at each token; its static one attends over the room that is still empty.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import Cache, DynamicLayer


class RoomyLayer(DynamicLayer):
    """Keys and values [M, heads, T, size] as views of storage with room for ``capacity`` tokens."""

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity = capacity

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self._key_room, self._value_room = self._room(key_states), self._room(value_states)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        stop = start + key_states.shape[-2]
        self._key_room[:, :, start:stop] = key_states
        self._value_room[:, :, start:stop] = value_states
        self.keys, self.values = self._key_room[:, :, :stop], self._value_room[:, :, :stop]
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the given rows, in new storage of their number. Named as transformers names it."""
        kept_keys, kept_values = self.keys, self.values
        if kept_keys is None or kept_values is None:
            return
        stop = self.get_seq_length()
        self._key_room, self._value_room = self._room(kept_keys, len(beam_idx)), self._room(kept_values, len(beam_idx))
        self.keys, self.values = self._key_room[:, :, :stop], self._value_room[:, :, :stop]
        for new, old in ((self.keys, kept_keys), (self.values, kept_values)):
            new.copy_(old.index_select(0, beam_idx))

    def _room(self, states: Tensor, rows: int | None = None) -> Tensor:
        batch, heads, _, size = states.shape
        return torch.empty(rows or batch, heads, self.capacity, size, dtype=states.dtype, device=states.device)


def new_cache(config: PretrainedConfig, capacity: int | None = None) -> Cache:
    """An empty cache, with room for ``capacity`` tokens where that is given."""
    cache = DynamicCache(config=config)
    return cache if capacity is None else with_room(cache, capacity)


def with_room(cache: Any, capacity: int) -> Any:
    """The cache, in which layers of full attention have room for ``capacity`` tokens; other kinds stay as they are."""
    if isinstance(cache, DynamicCache):
        cache.layers = [_roomy(layer, capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _roomy(layer: DynamicLayer, capacity: int) -> RoomyLayer:
    roomy = RoomyLayer(capacity)
    if layer.is_initialized:
        assert layer.keys is not None and layer.values is not None
        roomy.update(layer.keys, layer.values)
    return roomy
