"""Language models whose linear layers are int8: made of a float model, or read and written as compressed-tensors has
them.

All layers that are exactly ``nn.Linear`` become ``Int8Linear``, but the head: embeddings, head, vectors and all else
stay float.

Legend: O out.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from eggroll_rl.es.int8 import LARGEST_INT8, Int8Linear, Quantised, quantise
from eggroll_rl.system.errors import UsageError

Activations = Literal["float", "int8"]
SCALE = ".weight_scale"
TAKEN = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": False}


def int8_linears(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The layers that are int8 under ``weights: int8``, by path."""
    head = model.get_output_embeddings()
    owners = [id(p) for _, p in model.named_parameters(remove_duplicate=False)]
    return {
        path: layer
        for path, layer in model.named_modules()
        if type(layer) is nn.Linear and layer is not head and owners.count(id(layer.weight)) == 1
    }


def to_int8(model: PreTrainedModel, known: Mapping[str, Quantised] | None = None) -> PreTrainedModel:
    """Make these layers int8, one at a time and in place; those that ``known`` has by path of its integers."""
    for path, layer in int8_linears(model).items():
        matrix = known[path] if known and path in known else quantise(layer.weight)
        model.set_submodule(path, Int8Linear(matrix, layer.bias))
    return model


def empty_matrix(layer: nn.Linear) -> Quantised:
    """The matrix of a layer on the meta device: shapes alone."""
    O, I = layer.weight.shape  # noqa: E741
    return Quantised(torch.empty(O, I, dtype=torch.int8, device="meta"), torch.empty(O, 1, device="meta"))


def is_int8(model: nn.Module) -> bool:
    return any(isinstance(layer, Int8Linear) for layer in model.modules())


def refuse_unknown(name: str, quantisation: Any) -> None:
    """Raise UsageError where a checkpoint is quantised in any other way than int8 with a scale for each output."""
    values = quantisation if isinstance(quantisation, dict) else quantisation.to_dict()
    method = values.get("quant_method", "?")
    method = getattr(method, "value", method)
    if method != "compressed-tensors":
        raise UsageError(
            f"{name!r} is a checkpoint quantised by {method}, whose weights cannot learn: name the model in floating "
            "point that it was made from"
        )
    groups = values.get("config_groups") or {}
    faults = [fault for group in groups.values() for fault in _faults(group)]
    if values.get("format") != "int-quantized" or values.get("kv_cache_scheme") or not groups:
        faults.insert(0, f"format {values.get('format')}")
    if faults:
        raise UsageError(
            f"{name!r} is a checkpoint quantised by compressed-tensors as {faults[0]}, and only int8 weights with one "
            "scale for each output can learn (int-quantized, symmetric, per channel): name the model in floating point "
            "that it was made from"
        )


def _faults(group: Mapping[str, Any]) -> list[str]:
    weights, activations = group.get("weights") or {}, group.get("input_activations")
    faults = [f"{key} {weights.get(key)}" for key, value in TAKEN.items() if weights.get(key) != value]
    if weights.get("strategy") not in ("channel", "tensor"):
        faults.append(f"strategy {weights.get('strategy')}")
    if activations and not activations.get("dynamic"):
        faults.append("static activations")
    if group.get("output_activations"):
        faults.append("quantised outputs")
    return faults


def read_int8(name: str, source: str, layers: Collection[str]) -> tuple[dict[str, Tensor], dict[str, Quantised]]:
    """The tensors of an int8 checkpoint, its matrices as floats, and these as they are stored, by the layer's path.

    Args:
        source: a folder, or a name on the hub.
        layers: paths of those that will be int8; their floats are zeros that take no memory.

    Raises:
        UsageError: see ``check_scales``.
    """
    folder = Path(source) if Path(source).is_dir() else Path(snapshot_download(source))
    check_scales(name, folder)
    state = {key: tensor for path in sorted(folder.glob("*.safetensors")) for key, tensor in load_file(path).items()}
    matrices = {}
    for key in [key for key in state if key.endswith(SCALE)]:
        path, scale = key.removesuffix(SCALE), state.pop(key)
        q_OI = state[f"{path}.weight"]
        matrices[path] = Quantised(q_OI, scale.float().reshape(-1, 1).expand(len(q_OI), 1).contiguous())
        stands_in = torch.zeros(()).expand(q_OI.shape)
        state[f"{path}.weight"] = stands_in if path in layers else matrices[path].dequantised()
    return state, matrices


def check_scales(name: str, folder: Path) -> None:
    """Find out whether each int8 matrix of a checkpoint has its scales, one for each output or one for all; of the
    matrices no more is read than their shapes.

    Raises:
        UsageError: one has not, a scale is no number above 0, or a file is damaged.
    """
    shapes: dict[str, tuple[int, ...]] = {}  # of int8 tensors
    scales: dict[str, Tensor] = {}
    try:
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                scales |= {key: file.get_tensor(key) for key in file.keys() if key.endswith(SCALE)}  # noqa: SIM118
                slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
                shapes |= {key: tuple(part.get_shape()) for key, part in slices.items() if part.get_dtype() == "I8"}
    except SafetensorError as error:
        raise UsageError(f"{name!r}: {path.name} is no safetensors file ({error}): fetch or save it again") from error
    for key in sorted({*scales, *(key.removesuffix(".weight") + SCALE for key in shapes)}):
        fault = _fault_of_scale(shapes.get(key.removesuffix(SCALE) + ".weight"), scales.get(key))
        if fault:
            raise UsageError(f"{name!r}: {key} {fault}: quantise the model anew, or name it in floating point")


def _fault_of_scale(shape: tuple[int, ...] | None, scale: Tensor | None) -> str:
    """Why such scales do not make an int8 matrix of such a shape one of numbers; empty where they do."""
    if shape is None or len(shape) != 2:
        return "is the scale of no int8 matrix"
    if scale is None:
        return "is missing, and the matrix is int8"
    if not scale.is_floating_point():
        return f"is {scale.dtype}, no floating point"
    if scale.numel() not in (1, shape[0]):
        return f"has the shape {tuple(scale.shape)}, and the matrix {shape}: one scale for each output is wanted"
    is_number = (scale.float() > 0) & (scale.float() * LARGEST_INT8).isfinite()
    return "" if bool(is_number.all()) else f"holds {scale[~is_number][0].item():g}, and a scale is a number above 0"


def save_int8(model: PreTrainedModel, folder: Path, activations: Activations = "float") -> None:
    """Write an int8 model as a Hugging Face folder in the layout of compressed-tensors.

    Args:
        activations: ``int8`` asks whoever serves it to round activations to int8 too, row by row (W8A8), which is what
            vLLM runs on a CPU.
    """
    floats = [path for path, layer in model.named_modules() if type(layer) is nn.Linear]
    model.config.quantization_config = quantisation_config(floats, activations)
    try:
        model.save_pretrained(folder)
    finally:
        del model.config.quantization_config


def quantisation_config(floats: list[str], activations: Activations = "float") -> dict[str, Any]:
    """What config.json says of an int8 model, with the paths of linear layers that are ``floats``."""
    int8 = {"num_bits": 8, "type": "int", "symmetric": True}
    rows = {**int8, "strategy": "token", "dynamic": True} if activations == "int8" else None
    group = {
        "targets": ["Linear"],
        "weights": {**int8, "strategy": "channel", "dynamic": False},
        "input_activations": rows,
        "format": "int-quantized",
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": floats,
    }


def float_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """The tensors of the same model in fp32, ``scale * q`` where it is int8."""
    state = {key: tensor.float() for key, tensor in model.state_dict().items() if not key.endswith(SCALE)}
    for path, layer in model.named_modules():
        if isinstance(layer, Int8Linear):
            state[f"{path}.weight"] = layer.matrix.dequantised()
    return state
