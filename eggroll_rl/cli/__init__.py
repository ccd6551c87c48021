"""The command line: ``eggroll-rl train | grpo | compare | tune | evaluate | ask | bench | export | verify |
report | recipes | plan``.

A user's mistake is one line and exit code 2.
"""

import logging
import os

import typer

from eggroll_rl.cli import models, recipes, runs
from eggroll_rl.system.command import run_app

COMMANDS = (
    recipes.train,
    recipes.grpo,
    recipes.compare,
    recipes.tune,
    models.evaluate,
    models.ask,
    models.bench,
    runs.export,
    runs.verify,
    runs.report,
    recipes.recipes,
    recipes.plan,
)

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
for command in COMMANDS:
    app.command()(command)


def main() -> None:
    """Entry point of ``eggroll-rl``."""
    logging.getLogger("eggroll_rl").setLevel(logging.INFO)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # the run has its own display
    run_app(app)
