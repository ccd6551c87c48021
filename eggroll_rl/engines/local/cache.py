"""A key-value cache with room for the whole answer, so that a token costs writing one token.

transformers' dynamic cache copies everything at each token; its static one attends over the room that is still empty.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import Cache, DynamicLayer


class RoomyLayer(DynamicLayer):
    """Keys and values [M, heads, T, size] as views of storage with room for ``capacity`` tokens.

    Attributes:
        rows: how many rows the storage has room for; None: as many as it begins with.
    """

    def __init__(self, capacity: int, rows: int | None = None):
        super().__init__()
        self.capacity, self.rows = capacity, rows

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self._key_room, self._value_room = self._room(key_states), self._room(value_states)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        count, stop = len(key_states), start + key_states.shape[-2]
        self._key_room[:count, :, start:stop] = key_states
        self._value_room[:count, :, start:stop] = value_states
        self.keys, self.values = self._key_room[:count, :, :stop], self._value_room[:count, :, :stop]
        return self.keys, self.values

    def copy_rows(self, index: Tensor) -> None:
        """Add copies of these rows after all there are; there must be room."""
        assert self.keys is not None and self.values is not None
        count, stop = len(self.keys), self.get_seq_length()
        end = count + len(index)
        self._key_room[count:end, :, :stop] = self.keys[index]
        self._value_room[count:end, :, :stop] = self.values[index]
        self.keys, self.values = self._key_room[:end, :, :stop], self._value_room[:end, :, :stop]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the given rows, in new storage of their number. Named as transformers names it."""
        kept_keys, kept_values = self.keys, self.values
        if kept_keys is None or kept_values is None:
            return
        count, stop = len(beam_idx), self.get_seq_length()
        self._key_room, self._value_room = self._room(kept_keys, count), self._room(kept_values, count)
        self.keys, self.values = self._key_room[:count, :, :stop], self._value_room[:count, :, :stop]
        for new, old in ((self.keys, kept_keys), (self.values, kept_values)):
            new.copy_(old.index_select(0, beam_idx))

    def _room(self, states: Tensor, rows: int | None = None) -> Tensor:
        batch, heads, _, size = states.shape
        shape = (self.rows or rows or batch, heads, self.capacity, size)
        return torch.empty(shape, dtype=states.dtype, device=states.device)


def new_cache(config: PretrainedConfig, capacity: int | None = None, rows: int | None = None) -> Cache:
    """An empty cache, with room for ``capacity`` tokens, and for so many rows, where these are given."""
    cache = DynamicCache(config=config)
    return cache if capacity is None else with_room(cache, capacity, rows)


def with_room(cache: Any, capacity: int, rows: int | None = None) -> Any:
    """The cache, in which layers of full attention have such room; other kinds stay as they are."""
    if isinstance(cache, DynamicCache):
        cache.layers = [
            _roomy(layer, capacity, rows) if type(layer) is DynamicLayer else layer for layer in cache.layers
        ]
    return cache


def _roomy(layer: DynamicLayer, capacity: int, rows: int | None) -> RoomyLayer:
    roomy = RoomyLayer(capacity, rows)
    if layer.is_initialized:
        assert layer.keys is not None and layer.values is not None
        roomy.update(layer.keys, layer.values)
    return roomy
