"""What ``model_init_kwargs`` says of a run."""

from collections.abc import Callable, Mapping
from typing import Any

from eggroll_rl.system.errors import UsageError
from eggroll_rl.trainer.config import EggrollConfig

DTYPES = {"float32": "float32", "fp32": "float32", "bfloat16": "bfloat16", "bf16": "bfloat16"}
NAMES_OF_DTYPE = ("dtype", "torch_dtype")
UNSAID = {"trust_remote_code": (None, False), "revision": (None, "main")}  # as good as left out
HOW = ("attn_implementation", "device_map", "use_cache", "low_cpu_mem_usage")  # it computes: the engine's own choice
REASONS = {
    "trust_remote_code": "no code from the hub is run; architectures of transformers are",
    "revision": "a recipe names a model by its name alone: download that revision, and name the folder",
    "quantization_config": "a quantised weight cannot take steps this small",
    "load_in_8bit": "a quantised weight cannot take steps this small",
    "load_in_4bit": "a quantised weight cannot take steps this small",
}
OTHER = "of its keys only dtype has a meaning here, the engine loads the model itself"


def dtype_of(args: EggrollConfig, stored: Callable[[], str]) -> str:
    """What the model answers in: bfloat16 where ``bf16`` or the dtype of ``model_init_kwargs`` says so, whose ``auto``
    is that of the checkpoint, ``stored()``. As in TRL the weights that learn are of single precision.

    Raises:
        UsageError: another key, or another dtype.
    """
    given = _given(args)
    refused = [
        f"{name}={value!r}: {REASONS.get(name, OTHER)}"
        for name, value in given.items()
        if name not in (*NAMES_OF_DTYPE, *HOW) and value not in UNSAID.get(name, (None,))
    ]
    if refused:
        raise UsageError(f"model_init_kwargs: take out {'; '.join(refused)}")
    dtypes = [_dtype(str(given[name]), stored) for name in NAMES_OF_DTYPE if given.get(name) is not None]
    if args.bf16 or "bfloat16" in dtypes:
        return "bfloat16"
    if dtypes or args.bf16 is not None:
        return "float32"
    import torch

    return "bfloat16" if torch.cuda.is_available() and not args.use_cpu else "float32"


def of_no_consequence(args: EggrollConfig) -> list[str]:
    """Keys of ``model_init_kwargs`` that change nothing, each with the reason."""
    return [
        f"model_init_kwargs {name} (the engine chooses how it computes)"
        for name, value in _given(args).items()
        if name in HOW and value is not None
    ]


def _dtype(name: str, stored: Callable[[], str]) -> str:
    text = (stored() if name == "auto" else name).removeprefix("torch.")
    if text not in DTYPES:
        raise UsageError(
            f"model_init_kwargs dtype={name!r}{f', here {text},' if name == 'auto' else ''}: there are "
            f"{', '.join(DTYPES)} and auto"
        )
    return DTYPES[text]


def _given(args: EggrollConfig) -> Mapping[str, Any]:
    given = args.model_init_kwargs or {}
    assert not isinstance(given, str)  # it is read when the options are made
    return given
