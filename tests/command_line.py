"""The command line in this process, as a user meets it."""

import contextlib
import io
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from eggroll_rl.cli import main


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


def eggroll(folder: Path, *args: str) -> Outcome:
    """``eggroll-rl`` with these arguments, in this process and ``folder``."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(sys, "argv", ["eggroll-rl", *args])
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Outcome(code, out.getvalue(), err.getvalue())
