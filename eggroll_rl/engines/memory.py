"""Bytes of a row (its keys, values and logits), and bytes that are free."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import PretrainedConfig

SHARE = 0.5  # of the free memory that a batch may take
_VERSION_2 = ("", "memory.max", "memory.current", ("inactive_file", "active_file"))
_VERSION_1 = (
    "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")
)  # fmt: skip


def row_bytes(config: PretrainedConfig, tokens: int, element_size: int) -> int:
    """Bytes of one row of ``tokens`` tokens, prompt and answer: its cache, its prompt's activations, its logits.

    A recurrent layer is counted as one that attends, unless it is known.
    """
    text = config.get_text_config()
    width, layers = text.hidden_size, text.num_hidden_layers
    if text.model_type == "rwkv7":
        cache = layers * (width * text.head_dim * 4 + 2 * width * element_size)
    else:
        query_heads = _largest(text, "num_attention_heads", width // 64 or 1)
        heads = _largest(text, "num_key_value_heads", query_heads)
        head_dim = _largest(text, "head_dim", width // query_heads)
        cache = 2 * layers * heads * head_dim * tokens * element_size
    inner = _largest(text, "intermediate_size", 4 * width)
    return 2 * cache + (4 * width + 3 * inner) * tokens * element_size + 4 * text.vocab_size * 4


def _largest(config: PretrainedConfig, name: str, usual: int) -> int:
    """The largest value of a config's size, which may be one number, one for each layer, or missing (``usual``)."""
    values = [getattr(part, name, None) for part in getattr(config, "per_layer_config", None) or [config]]
    sizes = [size for value in values for size in (value if isinstance(value, list | tuple) else [value]) if size]
    return max(sizes, default=usual)


def free_bytes(device: torch.device) -> int:
    """Bytes that are free on a GPU or, within the limits of a container, on the host."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # free within torch's cache
        return torch.cuda.mem_get_info(device)[0] + held
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        available = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable"))
        return min([int(available.split()[1]) * 1024, *left_by_limits()])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def left_by_limits(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """Bytes that each control group (version 2 or 1) with a limit leaves this process.

    Caches of files count as free, as in ``MemAvailable``.
    """
    for line in own.read_text().splitlines() if own.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base, limit, usage, cached = _VERSION_1 if controllers else _VERSION_2
        inner = Path(path.lstrip("/"))
        for group in dict.fromkeys([root / base / inner, *(root / base / outer for outer in inner.parents)]):
            bound = (group / limit).read_text().strip() if (group / limit).is_file() else "max"
            if bound.isdigit():
                stat = dict(entry.split() for entry in (group / "memory.stat").read_text().splitlines())
                used = int((group / usage).read_text()) - sum(int(stat.get(name, 0)) for name in cached)
                yield max(0, int(bound) - used)


def usual_batch_bytes(device: torch.device) -> int:
    """Bytes that the rows of a batch may take by default: half of what is free now."""
    return int(free_bytes(device) * SHARE)
