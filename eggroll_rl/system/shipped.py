"""Files that come with the package."""

from importlib.resources import files
from pathlib import Path


def shipped_recipes() -> dict[str, Path]:
    """Names and files of the recipes that come with the package."""
    folder = Path(str(files("eggroll_rl.recipes")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
