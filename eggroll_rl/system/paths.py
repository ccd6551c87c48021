"""Paths as users write them."""

import os
import re
from pathlib import Path

from eggroll_rl.system.errors import UsageError

NAME_BYTES, PATH_BYTES = 255, 4095  # of Linux
VARIABLE = re.compile(r"\$(\w+|\{\w+\})")


def expanded(text: str) -> str:
    """``text`` with ``~``, ``~user``, ``$NAME`` and ``${NAME}`` replaced as in a shell.

    Raises:
        UsageError: there is no such user or variable, or the name is too long or holds a NUL.
    """
    path = os.path.expandvars(os.path.expanduser(text))
    unknown = VARIABLE.search(path)
    if unknown and not os.path.lexists(path):
        raise UsageError(f"{text!r} names {unknown[0]}, which is not set in the environment: set it, or write the path")
    if path.startswith("~") and not os.path.lexists(path):
        raise UsageError(f"{text!r} names a user's home that is not known: write the path")
    if "\0" in path:
        raise UsageError(f"{text!r} holds a NUL character: write a name without")
    if len(path.encode(errors="replace")) > PATH_BYTES or any(
        len(part.encode(errors="replace")) > NAME_BYTES for part in path.split("/")
    ):
        raise UsageError(f"a name of {len(path)} characters is too long for a file: take at most {NAME_BYTES}")
    return path


def refuse_unwritable(path: Path) -> None:
    """Check, before long work, that a file can be written at ``path``; missing folders are made.

    Raises:
        UsageError: it cannot; gives the reason.
    """
    is_new = not os.path.lexists(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab"):
            pass
        if is_new:
            path.unlink()
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}; name another file") from error
