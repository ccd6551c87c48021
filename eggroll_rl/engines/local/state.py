"""What models keep of their rows between two tokens, of whatever kind: keys and values, states of recurrent layers.

Legend: M rows of a batch.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel, cache_utils
from transformers.cache_utils import Cache, DynamicLayer, LinearAttentionCacheLayerMixin

from eggroll_rl.models.rwkv7 import RWKV7ForCausalLM

STATE_NAMES = (
    "cache",
    "past_key_values",
    "cache_params",
    "state",
)  # of the state, as an argument and in what comes back
ATTENTION_KINDS = (
    "DynamicLayer",
    "DynamicSlidingWindowLayer",
    "DynamicIndexedLayer",
    "DummyLayer",
)  # some came with a release
ATTENTION = tuple(getattr(cache_utils, kind) for kind in ATTENTION_KINDS if hasattr(cache_utils, kind))


def state_name(model: PreTrainedModel) -> str | None:
    """The argument by which a model takes its state back; None where it takes none that can be kept."""
    arguments = inspect.signature(model.forward).parameters
    name = next((name for name in STATE_NAMES if name in arguments), None)
    return None if name and "dict[" in str(arguments[name].annotation) else name


def state_of(outputs: Any) -> Any:
    """The state that a model gave back; None where it gave none."""
    return next((outputs[name] for name in STATE_NAMES if name in outputs), None)


def makes_own_state(model: PreTrainedModel) -> bool:
    """Whether the state is of the model's own kind, and none of transformers' caches."""
    kind: Any = type(model)
    return not kind._supports_default_dynamic_cache()


def masks_padding(model: PreTrainedModel) -> bool:
    """Whether a prompt is answered alike with padding before it and without.

    That is so where every layer attends, under the mask, and takes positions as they are given. A recurrent layer may
    read padding as tokens; that of our RWKV-7 does not.
    """
    if isinstance(model, RWKV7ForCausalLM):
        return True
    if makes_own_state(model) or "position_ids" not in inspect.signature(model.forward).parameters:
        return False
    return all(type(layer) in ATTENTION for layer in DynamicCache(config=model.config).layers)


def can_be_merged(model: PreTrainedModel) -> bool:
    """Whether states of prompts of different lengths may be put together as those of padded prompts.

    Recurrent layers keep nothing of the length, and keys and values are padded; positions then have to be given.
    """
    if makes_own_state(model):
        return True
    layers = DynamicCache(config=model.config).layers
    recurrent = [isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers]
    is_known = all(type(layer) in ATTENTION or linear for layer, linear in zip(layers, recurrent, strict=True))
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters
    return is_known and any(recurrent) and (takes_positions or not any(isinstance(x, DynamicLayer) for x in layers))


def select_rows(state: Any, index_M: Tensor, rows: int) -> Any:
    """The state of the given rows out of ``rows``; objects in it are changed in place.

    Layers of transformers' caches choose as they do in a beam search, which each kind of them is made for. Elsewhere
    every tensor whose first axis is the rows gives up the others.
    """
    if isinstance(state, Tensor):
        return state.index_select(0, index_M) if state.ndim > 1 and len(state) == rows else state
    if isinstance(state, list | tuple):
        return type(state)(select_rows(item, index_M, rows) for item in state)
    if isinstance(state, dict):
        return {key: select_rows(item, index_M, rows) for key, item in state.items()}
    if _is_plain(state):
        return state
    if hasattr(state, "reorder_cache") and not isinstance(state, Cache):
        state.reorder_cache(index_M)
    else:
        for name, item in vars(state).items():
            setattr(state, name, select_rows(item, index_M, rows))
    return state


def merge_rows(states: Sequence[Any], rows: Sequence[int]) -> Any:
    """One state of the rows of several, each of so many ``rows``; the first state is of the longest prompts.

    Keys and values of shorter prompts are padded on the left. Objects in the first state are changed in place.
    """
    first = states[0]
    if isinstance(first, Tensor):
        if first.ndim < 2 or any(len(tensor) != count for tensor, count in zip(states, rows, strict=True)):
            return first
        return torch.cat([_padded(tensor, first.shape) for tensor in states])
    if isinstance(first, list | tuple):
        return type(first)(merge_rows(items, rows) for items in zip(*states, strict=True))
    if isinstance(first, dict):
        return {key: merge_rows([state[key] for state in states], rows) for key in first}
    if not _is_plain(first):
        for name in vars(first):
            setattr(first, name, merge_rows([getattr(state, name) for state in states], rows))
    return first


def _padded(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    return tensor if len(shape) < 3 else F.pad(tensor, (0, 0, shape[-2] - tensor.shape[-2], 0))


def _is_plain(value: Any) -> bool:
    """Whether ``value`` is plain: it cannot hold anything of the rows."""
    return isinstance(value, type | nn.Module | PretrainedConfig) or not hasattr(value, "__dict__")
