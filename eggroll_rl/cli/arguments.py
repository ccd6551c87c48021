"""Arguments that several commands have, and what is found of them before the work."""

from pathlib import Path
from typing import Annotated, Any

import typer

from eggroll_rl.config import Recipe
from eggroll_rl.system.paths import expanded, refuse_unwritable


def as_in_a_shell(value: Any) -> Any:
    """A path or name, or several, with ``~`` and variables as a shell has them: no shell looks into ``--json=~/x``."""
    if isinstance(value, list | tuple):
        return [as_in_a_shell(one) for one in value]
    return None if value is None else type(value)(expanded(str(value)))


def writable(value: Path | None) -> Path | None:
    """A file to be written, found to be possible before the work."""
    path: Path | None = as_in_a_shell(value)
    if path is not None:
        refuse_unwritable(path)
    return path


def found(recipe: Recipe) -> Recipe:
    """The recipe, once its model and data are found: a name that leads nowhere is told before the heavy imports."""
    from eggroll_rl.data.sources import locate_data
    from eggroll_rl.models.naming import locate_model

    locate_model(recipe.model)
    locate_data(recipe.data)
    return recipe


def found_model(name: str) -> None:
    """Raise UsageError, before the heavy imports, where a name that can only be one on the hub leads nowhere."""
    from eggroll_rl.models.naming import is_hub_name, locate_model

    if is_hub_name(name) and "/" in name:
        locate_model(name)


RecipeArgument = Annotated[str, typer.Argument(help="a recipe file, or the name of a shipped recipe")]
RunArgument = Annotated[Path, typer.Argument(help="a run folder", callback=as_in_a_shell)]
Overrides = Annotated[list[str] | None, typer.Argument(help="overrides, as in population.size=64")]
