"""What models keep of their rows between two tokens, of whatever kind: keys and values, states of recurrent layers.

Legend: M rows of a batch.
"""

import inspect
from typing import Any

from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DummyLayer, DynamicIndexedLayer, DynamicLayer, DynamicSlidingWindowLayer

from eggroll_rl.models.rwkv7 import RWKV7ForCausalLM

NAMES = ("cache", "past_key_values", "cache_params", "state")  # of the state, as an argument and in what comes back
ATTENTION = (DynamicLayer, DynamicSlidingWindowLayer, DynamicIndexedLayer, DummyLayer)


def state_name(model: PreTrainedModel) -> str | None:
    """The argument by which a model takes its state back; None where it takes none that can be kept."""
    arguments = inspect.signature(model.forward).parameters
    name = next((name for name in NAMES if name in arguments), None)
    return None if name and "dict[" in str(arguments[name].annotation) else name


def makes_own_state(model: PreTrainedModel) -> bool:
    """Whether the state is of the model's own kind, and none of transformers' caches."""
    return not model._supports_default_dynamic_cache()


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
    if isinstance(state, type | nn.Module | PretrainedConfig) or not hasattr(state, "__dict__"):
        return state
    if hasattr(state, "reorder_cache") and not isinstance(state, Cache):
        state.reorder_cache(index_M)
    else:
        for name, item in vars(state).items():
            setattr(state, name, select_rows(item, index_M, rows))
    return state
