"""RWKV-7 checkpoints in BlinkDL's format: ``.pth`` files of named tensors, from which the geometry follows.

A file and its model are the same to the bit, both ways. What differs is settled here: the names; the shapes (a LoRA's
matrices are stored transposed, vectors as [1, 1, D]); and the epsilon of the norm over heads, 64e-5 in every file.

Legend: D width, H heads, K head size, F inner width, R rank of a LoRA, V vocabulary.
"""

import math
import pickle
from collections.abc import Collection
from functools import partial, reduce
from pathlib import Path

import torch
from torch import Tensor

from eggroll_rl.models.naming import PTH
from eggroll_rl.models.rwkv7 import RWKV7Config, RWKV7ForCausalLM
from eggroll_rl.system.durable import replace_file
from eggroll_rl.system.errors import UsageError

HEAD_NORM_EPS = 64e-5
NORM_EPS = 1e-5  # of all other norms
UNUSED = ("att.v1", "att.v2", "att.v0")  # in the first block, which makes the value that later blocks mix in
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, LookupError, AttributeError, TypeError, pickle.PickleError)
SIZED_BY = ("emb.weight", *(f"blocks.0.{name}" for name in ("att.r_k", "att.w1", "att.a1", "att.g1", "ffn.key.weight")))
BLOCK_NAMES = {  # BlinkDL's names -> Hugging Face's, in the order of BlinkDL's training code
    "ln1.weight": "attn_norm.weight",
    "ln1.bias": "attn_norm.bias",
    "ln2.weight": "ffn_norm.weight",
    "ln2.bias": "ffn_norm.bias",
    "ln0.weight": "pre_norm.weight",
    "ln0.bias": "pre_norm.bias",
    "att.x_r": "attn.x_r",
    "att.x_w": "attn.x_w",
    "att.x_k": "attn.x_k",
    "att.x_v": "attn.x_v",
    "att.x_a": "attn.x_a",
    "att.x_g": "attn.x_g",
    "att.w1": "attn.w_lora.lora.0.weight",
    "att.w2": "attn.w_lora.lora.2.weight",
    "att.w0": "attn.w_lora.lora.2.bias",
    "att.a1": "attn.a_lora.lora.0.weight",
    "att.a2": "attn.a_lora.lora.2.weight",
    "att.a0": "attn.a_lora.lora.2.bias",
    "att.v1": "attn.v_lora.lora.0.weight",
    "att.v2": "attn.v_lora.lora.2.weight",
    "att.v0": "attn.v_lora.lora.2.bias",
    "att.g1": "attn.g_lora.lora.0.weight",
    "att.g2": "attn.g_lora.lora.2.weight",
    "att.k_k": "attn.k_k",
    "att.k_a": "attn.k_a",
    "att.r_k": "attn.r_k",
    "att.receptance.weight": "attn.r_proj.weight",
    "att.key.weight": "attn.k_proj.weight",
    "att.value.weight": "attn.v_proj.weight",
    "att.output.weight": "attn.o_proj.weight",
    "att.ln_x.weight": "attn.g_norm.weight",
    "att.ln_x.bias": "attn.g_norm.bias",
    "ffn.x_k": "ffn.x_k",
    "ffn.key.weight": "ffn.key.weight",
    "ffn.value.weight": "ffn.value.weight",
}


def read_config(path: str | Path) -> RWKV7Config:
    """The geometry of a checkpoint, from the shapes of its tensors alone.

    Raises:
        UsageError: as ``load_pth``.
    """
    return _geometry(_open(Path(path)), path)


def load_pth(path: str | Path, dtype: torch.dtype | None = None) -> RWKV7ForCausalLM:
    """The model of a checkpoint in evaluation mode, in ``dtype`` (None: the file's, the widest of several).

    Raises:
        UsageError: the file is missing, damaged or no RWKV-7; the message names the tensors that are wrong.
    """
    tensors = _open(Path(path))
    config = _geometry(tensors, path)
    dtype = dtype or reduce(torch.promote_types, (tensor.dtype for tensor in tensors.values()))
    model = _empty(config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    state = {}
    for theirs, ours in canonical_names(config).items():
        tensor = tensors[theirs].mT if _is_transposed(ours) else tensors[theirs]
        state[ours] = tensor.to(dtype, copy=True, memory_format=torch.contiguous_format).view(shapes[ours])
    model.load_state_dict(state, assign=True)
    return model.eval()


def save_pth(model: RWKV7ForCausalLM, path: str | Path) -> None:
    """Write a checkpoint, in the model's dtype; the file appears whole or not at all.

    Where the model's head norm has another epsilon than a file can say, the receptance is scaled so that the outputs
    stay what they are: ``c y / sqrt(var(c y) + c^2 eps) = y / sqrt(var(y) + eps)``.

    Raises:
        UsageError: the file exists, or the model has what the format cannot hold.
    """
    path, config = Path(path), model.config
    if path.suffix != PTH:
        raise UsageError(f"{path} does not end in {PTH}; give it that ending, by which checkpoints are known")
    if path.exists():
        raise UsageError(f"{path} exists and is never overwritten: choose another name, or remove it")
    if not isinstance(config, RWKV7Config):
        raise UsageError(
            f"a {PTH} checkpoint holds an RWKV-7, and this is a {type(model).__name__}; save_pretrained it"
        )
    if config.norm_eps != NORM_EPS:
        raise UsageError(
            f"a {PTH} file implies norms of epsilon {NORM_EPS}, and this one has {config.norm_eps}; save_pretrained it"
        )
    scale = math.sqrt(HEAD_NORM_EPS / config.head_norm_eps)
    state = model.state_dict()
    for block in (f"model.layers.{layer}.attn" for layer in range(config.num_hidden_layers)):
        state[f"{block}.r_proj.weight"] = state[f"{block}.r_proj.weight"] * scale
        state[f"{block}.r_k"] = state[f"{block}.r_k"] / scale
    tensors = {theirs: _as_stored(ours, state[ours].cpu()) for theirs, ours in canonical_names(config).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, partial(_write, tensors))


def canonical_names(config: RWKV7Config) -> dict[str, str]:
    """BlinkDL's names, in a file's order -> canonical names."""
    names = {"emb.weight": "model.embeddings.weight"}
    for layer in range(config.num_hidden_layers):
        for theirs, ours in BLOCK_NAMES.items():
            if layer and theirs.startswith("ln0"):
                continue
            if layer == 0 and theirs in UNUSED:
                if config.unused_v_lora:
                    names[f"blocks.0.{theirs}"] = f"model.layers.0.{theirs.replace('att', 'attn')}"
                continue
            names[f"blocks.{layer}.{theirs}"] = f"model.layers.{layer}.{ours}"
    names |= {"ln_out.weight": "model.norm.weight", "ln_out.bias": "model.norm.bias", "head.weight": "lm_head.weight"}
    return {theirs: names[theirs] for theirs in config.pth_order or names}


def _write(tensors: dict[str, Tensor], path: Path) -> None:
    with path.open("wb") as file:
        try:
            torch.save(tensors, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch hides the error of the disk
                raise error.__context__ from None
            raise


def _open(path: Path) -> dict[str, Tensor]:
    """The file's tensors, mapped into memory and not read yet."""
    if not path.is_file():
        raise UsageError(f"no file {str(path)!r}; give the path of an RWKV-7 {PTH} checkpoint")
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UNREADABLE as error:
        raise UsageError(
            f"{path} is truncated or no PyTorch checkpoint; download it again, or save it by torch.save"
        ) from error
    named = isinstance(tensors, dict) and all(isinstance(name, str) for name in tensors)
    if not named or not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise UsageError(f"{path} holds no named tensors; give the state_dict of an RWKV-7, as BlinkDL publishes them")
    return tensors


def _geometry(tensors: dict[str, Tensor], path: str | Path) -> RWKV7Config:
    """The configuration that fits the names and shapes of all tensors."""
    older = _older_version(tensors)
    if older:
        raise UsageError(f"{path} is an {older} checkpoint, and only RWKV-7 (x070) runs here; give an RWKV-7 {PTH}")
    absent = [name for name in SIZED_BY if name not in tensors or tensors[name].ndim != 2 or not tensors[name].numel()]
    if absent:
        raise UsageError(f"{path} is no RWKV-7: it has no matrix {', '.join(absent)}; give an RWKV-7 (x070) {PTH}")
    embedding_VD, r_k_HK, w1_DR, a1_DR, g1_DR, key_FD = (tensors[name] for name in SIZED_BY)
    v1_DR = next((t for name, t in tensors.items() if name.endswith("att.v1") and t.ndim == 2), a1_DR)
    if r_k_HK.numel() != embedding_VD.shape[1]:
        raise UsageError(
            f"{path} has a width of {embedding_VD.shape[1]}, which {tuple(r_k_HK.shape)} heads do not fill; "
            f"give an RWKV-7 (x070) {PTH}"
        )
    config = RWKV7Config(
        vocab_size=embedding_VD.shape[0],
        hidden_size=embedding_VD.shape[1],
        num_hidden_layers=len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}),
        head_dim=r_k_HK.shape[1],
        intermediate_size=key_FD.shape[0],
        decay_low_rank_dim=w1_DR.shape[1],
        a_low_rank_dim=a1_DR.shape[1],
        v_low_rank_dim=v1_DR.shape[-1],
        gate_low_rank_dim=g1_DR.shape[1],
        norm_eps=NORM_EPS,
        head_norm_eps=HEAD_NORM_EPS,
        unused_v_lora="blocks.0.att.v1" in tensors,
        eos_token_id=0,
        pad_token_id=0,
    )
    names = canonical_names(config)
    _check(tensors, names, config, path)
    config.pth_order = None if list(tensors) == list(names) else list(tensors)
    return config


def _check(tensors: dict[str, Tensor], names: dict[str, str], config: RWKV7Config, path: str | Path) -> None:
    like = _empty(config).state_dict()
    missing = [name for name in names if name not in tensors]
    unknown = [name for name in tensors if name not in names]
    shapes = {theirs: tuple(_as_stored(ours, like[ours]).shape) for theirs, ours in names.items()}
    wrong = [
        f"{name} {tuple(tensors[name].shape)}, not {shape}"
        for name, shape in shapes.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    quantised = [name for name, tensor in tensors.items() if not tensor.is_floating_point()]
    faults = {"lacks": missing, "has the unknown": unknown, "has misshapen": wrong, "has quantised": quantised}
    found = "; ".join(f"it {what} {_listed(these)}" for what, these in faults.items() if these)
    if found:
        raise UsageError(
            f"{path} is no RWKV-7 (x070) as BlinkDL publishes it: {found}; download it again, or give another {PTH}"
        )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _older_version(names: Collection[str]) -> str | None:
    kinds = {name.rpartition(".")[2] for name in names}
    if any(kind.startswith("time_maa") for kind in kinds):
        return "RWKV-6"
    if not any(kind.startswith("time_") for kind in kinds):
        return None
    return "RWKV-5" if any(".ln_x." in name for name in names) else "RWKV-4"


def _empty(config: RWKV7Config) -> RWKV7ForCausalLM:
    with torch.device("meta"):
        return RWKV7ForCausalLM(config)


def _is_transposed(ours: str) -> bool:
    return "_lora.lora." in ours and ours.endswith(".weight")


def _as_stored(ours: str, tensor: Tensor) -> Tensor:
    """A parameter in the shape of BlinkDL's files."""
    if _is_transposed(ours):
        return tensor.mT.contiguous()
    return tensor.view(1, 1, -1) if tensor.ndim == 1 and "norm" not in ours else tensor
