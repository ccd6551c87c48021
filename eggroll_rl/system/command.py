"""Command lines: a user's mistake is one line and exit code 2, a signal the exit code that shells expect."""

import logging
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import typer

from eggroll_rl.system.errors import UsageError
from eggroll_rl.system.interrupts import Interrupted


def run_app(app: Callable[[], object]) -> None:
    """Run a typer app; a UsageError or a signal ends the process with a message and an exit code."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        app()
    except SystemExit as ended:
        told = ended.__context__ and ended.__context__.__cause__  # typer ends by 130 whatever the signal was
        sys.exit(told.exit_code if isinstance(told, Interrupted) else ended.code)
    except UsageError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


def run_command(function: Callable[..., object]) -> None:
    """Run a function whose parameters are the arguments and options of a command line."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(function)
    run_app(app)


def resume_command(folder: Path) -> str:
    """The command line that resumes the run in ``folder``."""
    return f"eggroll-rl train --resume {shlex.quote(str(folder))}"
