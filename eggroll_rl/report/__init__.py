"""Pictures of a run, and its self-contained HTML page.

A page is one file that loads nothing: its charts are SVG within it, and its policy forbids scripts and the network.
"""

from functools import partial
from pathlib import Path

from eggroll_rl.config import load_recipe
from eggroll_rl.report.run_charts import learning_curve
from eggroll_rl.report.run_page import recipe_of_run, write_run_page
from eggroll_rl.report.series import History
from eggroll_rl.report.text_charts import text_curve
from eggroll_rl.report.text_page import write_text_page
from eggroll_rl.runs.folder import RunFolder
from eggroll_rl.system.durable import replace_file

__all__ = ["draw_learning_curve", "draw_run", "write_report"]


def draw_run(run: RunFolder) -> None:
    """Write the learning curve and the page of a run into its folder."""
    draw_learning_curve(run)
    write_report(run.path)


def draw_learning_curve(run: RunFolder) -> None:
    """Write ``learning_curve.png``: training rewards (or bits per byte) and evaluations against training time."""
    recipe = load_recipe(run.recipe_file)
    curve = learning_curve if recipe.text is None else text_curve
    replace_file(run.curve, partial(curve(History.of(run, recipe)).savefig, dpi=150, format="png"))


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Write the page of a run, into its folder unless ``output`` says where; returns the file.

    Raises:
        UsageError: the folder holds no run, or the file cannot be written.
    """
    run = RunFolder(folder)
    recipe, path = recipe_of_run(run), output or run.report
    (write_run_page if recipe.text is None else write_text_page)(run, recipe, path)
    return path
