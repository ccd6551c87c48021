"""Files that outlive a crash: written beside their place, synced to the disk, and put there in one step."""

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from eggroll_rl.system.errors import UsageError

SCRATCH = ".tmp"  # ends the names of what is not yet in its place
REFUSED = (OSError, SafetensorError)  # a full disk, as Python and as safetensors tell of it


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a new file that takes the place of ``path``: all of it or nothing.

    Raises:
        UsageError: the disk is full or refuses; ``path`` is as it was.
    """
    scratch = path.with_name(path.name + SCRATCH)
    try:
        write(scratch)
        sync(scratch)
        os.replace(scratch, path)
        sync(path.parent)
    except REFUSED as error:
        scratch.unlink(missing_ok=True)
        raise cannot_write(path, error) from error


def replace_folder(path: Path, write: Callable[[Path], object]) -> None:
    """The same for a folder. A crash while an old one goes away may leave neither; the new one is then made again.

    Raises:
        UsageError: the disk is full or refuses.
    """
    scratch = path.with_name(path.name + SCRATCH)
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        write(scratch)
        for file in [*scratch.rglob("*"), scratch]:
            sync(file)
        if path.exists():
            shutil.rmtree(path)
        os.replace(scratch, path)
        sync(path.parent)
    except REFUSED as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise cannot_write(path, error) from error


def sync(path: Path) -> None:
    """Have the operating system put a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cannot_write(path: Path, error: Exception) -> UsageError:
    reason = getattr(error, "strerror", None) or error
    return UsageError(f"{path} cannot be written: {reason}; make room or see to the disk")


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
