"""The machine and the versions that a run ran on."""

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import torch

from eggroll_rl.system.cores import usable_cores

PACKAGES = ("eggroll-rl", "torch", "transformers", "datasets", "numpy", "vllm", "ray", "trl", "accelerate")


def environment(device: str = "auto") -> dict[str, Any]:
    """The device that ``engine.device`` of a recipe means here, the system, and the versions of packages, as JSON.

    Returns:
        ``device``, ``cpus`` that this process may use, ``threads`` of torch, ``platform``, ``python``, ``versions``.
    """
    on_gpu = device != "cpu" and torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if on_gpu else _processor(),
        "cpus": usable_cores(),
        "threads": torch.get_num_threads(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
