"""From YAML and ``key=value`` overrides to a recipe, with an error that names the nearest right key; and back."""

import difflib
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from eggroll_rl.config.recipe import Recipe
from eggroll_rl.system.errors import UsageError
from eggroll_rl.system.notation import read_yaml, write_yaml
from eggroll_rl.system.paths import expanded
from eggroll_rl.system.shipped import shipped_recipes


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file (or a shipped recipe by its name) and apply ``dotted.key=value`` overrides, values in YAML.

    Raises:
        UsageError: naming the file, key or value at fault and the nearest valid one.
    """
    path = shipped_recipes().get(str(source)) or Path(expanded(str(source)))
    if not path.is_file():
        near = difflib.get_close_matches(str(source), shipped_recipes(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"give a YAML file or one of: {', '.join(shipped_recipes())}"
        raise UsageError(f"no recipe {str(source)!r}; {hint}")
    try:
        values = read_yaml(path.read_bytes()) or {}
    except ValueError as error:
        raise UsageError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path}: a recipe is a mapping such as 'model: name', not a {type(values).__name__}")
    return build_recipe(values, overrides)


def build_recipe(values: dict[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """The recipe with these values and overrides; raises UsageError naming what is at fault."""
    for override in overrides:
        _assign(values, override)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise UsageError("; ".join(_explain(detail) for detail in error.errors())) from error


def dump_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe so that ``load_recipe`` reads it back unchanged."""
    path.write_text(write_yaml(recipe.model_dump(mode="json")), encoding="utf-8")


def _assign(values: dict[str, Any], override: str) -> None:
    dotted, separator, text = override.partition("=")
    if not separator:
        raise UsageError(f"override {override!r} has no '='; write key=value, as in population.size=64")
    try:
        value = read_yaml(text)
    except ValueError as error:
        raise UsageError(f"override {override!r}: the value is not valid YAML; quote it") from error
    *parents, last = dotted.strip().split(".")
    node: Any = values
    for depth, key in enumerate(parents):
        slot = _slot(node, key, ".".join(parents[:depth]))
        if isinstance(node, dict) and node.get(slot) is None:
            node[slot] = {}
        node = node[slot]
    node[_slot(node, last, ".".join(parents))] = value


def _slot(node: Any, key: str, path: str) -> Any:
    """``key`` as an index into ``node``, the value at ``path``: a mapping's key, or the number of a list's item."""
    if isinstance(node, dict):
        return key
    if not isinstance(node, list):
        raise UsageError(
            f"no key {key!r} under {path!r}, which holds the plain value {node!r}; override {path!r} itself"
        )
    if not key.isdecimal() or int(key) >= len(node):
        raise UsageError(f"no item {key!r} in {path!r}: its {len(node)} items are numbered from 0")
    return int(key)


def _explain(detail: Any) -> str:
    """One pydantic error as a sentence; for an unknown key, with the nearest right one."""
    path = [str(part) for part in detail["loc"]]
    key = ".".join(path)
    if detail["type"] == "extra_forbidden":
        siblings = _fields_at(path[:-1])
        near = difflib.get_close_matches(path[-1], siblings, n=1)
        if near:
            return f"unknown key {key!r}: did you mean {'.'.join([*path[:-1], near[0]])!r}?"
        return f"unknown key {key!r}: the keys there are {', '.join(siblings)}"
    if detail["type"] == "missing":
        return f"{key!r} is missing"
    message = detail["msg"].removeprefix("Value error, ")
    message += "" if detail["type"] == "value_error" else f" (got {reprlib.repr(detail['input'])})"
    return f"{key}: {message}" if key else message


def _fields_at(path: list[str]) -> list[str]:
    model: Any = Recipe
    for part in path:
        if not part.isdigit():
            annotation = model.model_fields[part].annotation
            choices = (annotation, *getattr(annotation, "__args__", ()))
            model = next((choice for choice in choices if hasattr(choice, "model_fields")), model)
    return list(model.model_fields)
