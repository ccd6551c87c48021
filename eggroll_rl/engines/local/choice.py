"""Which decoder runs a model."""

import logging
from collections.abc import Callable, Sequence

from transformers import PreTrainedModel

from eggroll_rl.engines.local.decoder import Decoder
from eggroll_rl.engines.local.eager import EagerDecoder
from eggroll_rl.engines.local.fused_rwkv import FusedDecoder, can_be_fused
from eggroll_rl.engines.local.memories import can_be_static
from eggroll_rl.engines.local.sharing import SharingDecoder, can_read_once
from eggroll_rl.engines.local.static import StaticDecoder
from eggroll_rl.es.layers import PopulationLayers
from eggroll_rl.es.parameters import EvolvedParameter
from eggroll_rl.models.rwkv7 import RWKV7ForCausalLM
from eggroll_rl.system.errors import UsageError
from eggroll_rl.system.native import CompilerMissing

logger = logging.getLogger(__name__)

Choice = Callable[[PreTrainedModel, PopulationLayers, Sequence[EvolvedParameter]], Decoder]


def fastest(model: PreTrainedModel, layers: PopulationLayers, evolved: Sequence[EvolvedParameter]) -> Decoder:
    """The fastest decoder that there is for a model where it is."""
    of_kind = for_rwkv if isinstance(model, RWKV7ForCausalLM) else for_any
    return of_kind(model, layers, evolved)


def for_any(model: PreTrainedModel, layers: PopulationLayers, evolved: Sequence[EvolvedParameter]) -> Decoder:
    """Forward passes as transformers makes them; on CUDA they are captured, where state and model allow it."""
    if model.device.type != "cuda":
        return (
            SharingDecoder(model, layers, evolved[0]) if can_read_once(model, evolved) else EagerDecoder(model, layers)
        )
    if can_be_static(model):
        return StaticDecoder(model, layers)
    return EagerDecoder(model, layers, f"eager ({type(model).__name__} keeps state of varying shape)")


def for_rwkv(model: PreTrainedModel, layers: PopulationLayers, evolved: Sequence[EvolvedParameter]) -> Decoder:
    """Fused steps of an RWKV-7 on the CPU, where they can be.

    Raises:
        UsageError: the model is another.
    """
    if not isinstance(model, RWKV7ForCausalLM):
        raise UsageError(
            f"engine rwkv runs RWKV-7 models, and this is a {type(model).__name__}: set engine.name=transformers"
        )
    if model.device.type != "cpu":
        return for_any(model, layers, evolved)
    other = next((parameter.name for parameter in evolved if not can_be_fused(parameter)), None)
    if other:
        return EagerDecoder(model, layers, f"eager ({other} evolves with dense noise)")
    try:
        return FusedDecoder(model, layers)
    except CompilerMissing as reason:
        logger.warning("decoding runs unfused, about four times slower: %s", reason)
        return EagerDecoder(model, layers, f"eager ({reason})")


CHOICES: dict[str, Choice] = {"local": fastest, "transformers": for_any, "rwkv": for_rwkv}  # by the engine's name


def is_fused(engine: str, device: str, model: PreTrainedModel, evolved: Sequence[EvolvedParameter]) -> bool:
    """Whether an engine, by its name, takes fused steps of the model there, given a C compiler."""
    takes = CHOICES.get(engine) in (fastest, for_rwkv) and device == "cpu" and isinstance(model, RWKV7ForCausalLM)
    return takes and all(map(can_be_fused, evolved))
