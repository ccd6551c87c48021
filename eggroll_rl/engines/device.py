"""The device that a recipe means."""

import torch

from eggroll_rl.system.errors import UsageError


def device_name(name: str) -> str:
    """The device that ``engine.device`` of a recipe names: ``auto`` is a GPU where there is one."""
    return name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def device_of(name: str) -> torch.device:
    """The device that ``engine.device`` of a recipe means here.

    Raises:
        UsageError: this machine has no such device.
    """
    name = device_name(name)
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    kinds = ["cpu"]
    if accelerator:
        kinds += [f"{accelerator.type}:{number}" for number in range(torch.accelerator.device_count())]
    if name not in kinds and f"{name}:0" not in kinds:
        raise UsageError(f"engine.device={name}: there is none here; take auto, or one of {', '.join(kinds)}")
    return torch.device(name)
