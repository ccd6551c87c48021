"""Load configurations, tokenizers and models by the names of recipes and command lines."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import GENERATION_CONFIG_NAME

from eggroll_rl.config import Weights
from eggroll_rl.es.int8 import Quantised
from eggroll_rl.models.blinkdl import load_pth, read_config
from eggroll_rl.models.egg.model import named_config
from eggroll_rl.models.egg.tokenizer import byte_tokenizer
from eggroll_rl.models.int8 import check_scales, float_state, int8_linears, read_int8, refuse_unknown, to_int8
from eggroll_rl.models.naming import ADAPTER, PTH, is_new, locate_model
from eggroll_rl.models.world import RwkvTokenizer
from eggroll_rl.system.errors import UsageError


def load_config(name: str) -> PretrainedConfig:
    """A model's configuration alone, which is the same whether its weights are float or int8.

    Raises:
        UsageError: its architecture is unknown to transformers and to this package, or no causal language model; or it
            is quantised in another way.
    """
    return _read_config(name)[0]


def stored_weights(name: str) -> Weights:
    """Whether a checkpoint's linear layers are ``float`` or ``int8``.

    Raises:
        UsageError: see ``load_config``.
    """
    return _read_config(name)[1]


def check_weights(name: str, weights: Weights) -> None:
    """Raise UsageError if a recipe wants float weights of a checkpoint that holds int8, or if its scales are none."""
    if stored_weights(name) == "float":
        return
    if weights == "float":
        raise UsageError(f"{name!r} holds int8 weights, and this is for float ones: set weights=int8")
    folder = Path(locate_model(name))
    if folder.is_dir():  # else it is yet to be fetched
        check_scales(name, folder)


def _read_config(name: str) -> tuple[PretrainedConfig, Weights]:
    if is_new(name):
        return named_config(name), "float"
    source = locate_model(name)
    if source.endswith(PTH):
        return read_config(source), "float"
    kind = _model_type(source)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(source)
    except StrictDataclassError as error:
        raise UsageError(f"{name!r}: config.json is not valid: {' '.join(str(error).split())}") from error
    except (ValueError, OSError, KeyError) as error:
        raise UsageError(
            f"{name!r}: transformers knows no architecture {kind!r}; use a causal language model that "
            "AutoModelForCausalLM loads, or an RWKV-7"
        ) from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UsageError(
            f"{name!r}: {config.model_type!r} is no causal language model; use one that AutoModelForCausalLM loads"
        )
    quantisation = getattr(config, "quantization_config", None)
    if quantisation:
        refuse_unknown(name, quantisation)
        del config.quantization_config
    if (Path(source) / ADAPTER).is_file():
        raise UsageError(
            f"{name!r} holds an adapter ({ADAPTER}) beside the model: move the adapter's files away, or merge it "
            "(peft's merge_and_unload, then save_pretrained) and name that folder"
        )
    if config.model_type == "rwkv":
        config.rescale_every = 0  # else the first answer divides weights in place, which only half precision needs
    return config, "int8" if quantisation else "float"


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A model's tokenizer, with left padding; that of a ``.pth`` is the RWKV World tokenizer.

    Raises:
        UsageError: the folder has none, or the vocabulary of a ``.pth`` is another.
    """
    if is_new(name):
        return byte_tokenizer()
    source = locate_model(name)
    if source.endswith(PTH):
        return _world_tokenizer(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
    except (ValueError, OSError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise UsageError(
            f"{name!r} has no tokenizer that loads; save one into the folder with tokenizer.save_pretrained"
        ) from error
    if len(tokenizer) == 0:
        raise UsageError(f"{name!r} has an empty tokenizer; save one into the folder with tokenizer.save_pretrained")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def load_model(
    name: str, dtype: torch.dtype = torch.float32, weights: Weights = "float"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer in evaluation mode, on the CPU.

    Args:
        dtype: of all that is float.
        weights: of the linear layers; ``int8`` rounds those of a float checkpoint, one after the other.

    Raises:
        UsageError: a file is missing or does not load, or lacks weights of the model.
    """
    if is_new(name):
        raise UsageError(f"{name!r} is a model that is yet to be made: train it first (`eggroll-rl train egg_tiny`)")
    check_weights(name, weights)
    (config, stored), tokenizer = _read_config(name), load_tokenizer(name)
    known: dict[str, Quantised] = {}
    if name.endswith(PTH):
        model: PreTrainedModel = load_pth(name, dtype)
    elif stored == "int8":
        source = locate_model(name)
        state, known = read_int8(name, source, int8_linears(empty_model(name)))
        model = _load(name, None, config=config, dtype=dtype, state_dict=state)
        if (Path(source) / GENERATION_CONFIG_NAME).is_file():
            model.generation_config = GenerationConfig.from_pretrained(source)
    elif weights == "int8" and dtype == torch.float32:  # the checkpoint's precision: less memory, no loss
        model = _load(name, locate_model(name), config=config, dtype="auto")
    else:
        model = _load(name, locate_model(name), config=config, dtype=dtype)
    if weights == "int8":
        to_int8(model, known)
        for parameter in model.parameters():
            if parameter.is_floating_point() and parameter.dtype != dtype and dtype == torch.float32:
                parameter.data = parameter.data.to(dtype)
    return model.eval(), tokenizer


def _load(name: str, source: str | None, **options: Any) -> PreTrainedModel:
    """``from_pretrained`` of a causal language model; raises UsageError where weights are missing."""
    loader: Any = AutoModelForCausalLM
    model: PreTrainedModel
    try:
        if source is None:
            loader = MODEL_FOR_CAUSAL_LM_MAPPING[type(options["config"])]
        model, report = loader.from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except (ValueError, OSError, SafetensorError) as error:
        raise UsageError(f"{name!r} does not load as a causal language model: {str(error).splitlines()[0]}") from error
    lacking = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if lacking:
        more = f" and {len(lacking) - 8} more" if len(lacking) > 8 else ""
        raise UsageError(
            f"{name!r} has no weights of the right shape for {', '.join(lacking[:8])}{more}: config.json and weights "
            "belong to different models, or a file is missing"
        )
    return model


def with_floats(model: PreTrainedModel) -> PreTrainedModel:
    """An fp32 copy of an int8 model, for saving only: its buffers that are not saved stay empty."""
    floats = empty_like(model)
    floats.load_state_dict(float_state(model), assign=True)
    floats.generation_config = model.generation_config
    return floats


def save_float(model: PreTrainedModel, folder: Path) -> None:
    """Write an int8 model as an ordinary Hugging Face folder in fp32."""
    with_floats(model).save_pretrained(folder)


def empty_model(name: str) -> PreTrainedModel:
    """The model without its weights (on the meta device): shapes and names only, and no dropout.

    Raises:
        UsageError: see ``load_config``; or the model is a part that does not load by itself.
    """
    config = load_config(name)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    if type(model.config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UsageError(
            f"{name!r}: {type(model).__name__}, the language model of {config.model_type!r}, does not load by itself "
            "once it is saved; use another architecture"
        )
    return model


def empty_like(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the same kind and shape, without weights (on the meta device)."""
    with torch.device("meta"):
        empty: PreTrainedModel = type(model)(copy.deepcopy(model.config)).eval()
    return empty


def _model_type(source: str) -> str:
    """``model_type`` in a folder's config.json; ``?`` where there is none, or for a hub name."""
    path = Path(source) / "config.json"
    try:
        values = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from error
    return str(values.get("model_type", "?")) if isinstance(values, dict) else "?"


def _world_tokenizer(path: str) -> PreTrainedTokenizerBase:
    tokenizer, rows = RwkvTokenizer(padding_side="left"), read_config(path).vocab_size
    if rows < len(tokenizer):
        raise UsageError(
            f"{path!r} has a vocabulary of {rows}, too few for the RWKV World tokenizer: save the model and its "
            "own tokenizer into one folder (load_pth(...).save_pretrained, tokenizer.save_pretrained) and name that"
        )
    return tokenizer
