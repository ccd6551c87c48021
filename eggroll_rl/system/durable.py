"""Files that outlive a crash: written beside their place, synced to the disk, and put there in one step."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eggroll_rl.system.errors import UsageError

SCRATCH = ".tmp"  # suffix of files and folders that are being written, or being removed


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a new file that takes the place of ``path``: all of it or nothing.

    Raises:
        UsageError: ``write`` failed, as on a full disk, or the system refuses; ``path`` is as it was.
    """
    with _beside(path) as scratch:
        write(scratch)
        sync(scratch)
        os.replace(scratch, path)
        sync(path.parent)


def replace_folder(path: Path, write: Callable[[Path], object]) -> None:
    """The same for a folder; a crash between two renames may leave neither the old nor the new one in its place.

    Raises:
        UsageError: ``write`` failed, as on a full disk, or the system refuses.
    """
    old = path.with_name(f"{path.name}.old{SCRATCH}")
    with _beside(path) as scratch:
        remove(scratch)
        remove(old)
        write(scratch)
        for file in [*scratch.rglob("*"), scratch]:
            sync(file)
        if path.exists():
            os.replace(path, old)
        os.replace(scratch, path)
        sync(path.parent)
        remove(old)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Yield a path beside ``path`` for the block to write; if the block fails, remove what is there.

    Any exception becomes a UsageError about the disk, because each library has its own error for a full one: tokenizers
    a plain ``Exception``, torch a ``RuntimeError``, safetensors one of its own.
    """
    scratch = path.with_name(path.name + SCRATCH)
    try:
        yield scratch
    except BaseException as error:
        remove(scratch)
        if isinstance(error, UsageError) or not isinstance(error, Exception):
            raise
        raise cannot_write(path, error) from error


def write_json(path: Path, value: Any) -> None:
    """Replace a file by a value as indented JSON (see ``json_text``).

    Raises:
        UsageError: as ``replace_file``.
    """
    text = json_text(value, indent=2) + "\n"
    replace_file(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))


def json_text(value: Any, indent: int | None = None) -> str:
    """``value`` as standard JSON; numbers that are not finite become null.

    Half a surrogate pair is left in the text: encode it with ``errors="backslashreplace"``, which gives JSON's escape.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    except ValueError:
        return json.dumps(_without_nan(value), ensure_ascii=False, allow_nan=False, indent=indent)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, Mapping):
        return {key: _without_nan(inner) for key, inner in value.items()}
    return [_without_nan(inner) for inner in value] if isinstance(value, list | tuple) else value


def remove(path: Path) -> None:
    """Remove a file or a folder; do nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Make the operating system write a file, or the names in a folder, to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cannot_write(path: Path, error: Exception) -> UsageError:
    reason = getattr(error, "strerror", None) or error
    return UsageError(f"{path} cannot be written: {reason}; make room or see to the disk")
