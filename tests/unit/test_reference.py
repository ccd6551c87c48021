"""The reference of recipes says of every key what the models that validate recipes do."""

import importlib.util
import json
import operator
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import pytest
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from eggroll_rl.config import Recipe, Section

HOOK = Path(__file__).parents[2] / "docs" / "hooks" / "reference.py"
ORDER = {"≥": operator.ge, ">": operator.gt, "≤": operator.le, "<": operator.lt}


def hook() -> ModuleType:
    specification = importlib.util.spec_from_file_location("reference", HOOK)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def held(annotation: Any) -> type[Section] | None:
    """The section that an annotation is, or holds."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, map(held, getattr(annotation, "__args__", ()))), None)


def keys(section: type[Section], path: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in section.model_fields.items():
        yield f"{path}{name}", field
        inner = held(field.annotation)
        if inner:
            yield from keys(inner, f"{path}{name}.")


def rows(page: str) -> dict[str, list[str]]:
    """Key -> its cells: type, default, range, meaning."""
    found, section = {}, ""
    for line in page.splitlines():
        if heading := re.match(r"## `(\S+)`", line):
            section = heading[1] + "."
        elif line.startswith("| `"):
            key, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            found[section + key.strip("`")] = cells
    return found


KEYS = dict(keys(Recipe))
ROWS = rows(hook().reference())


def accepts(field: FieldInfo, value: Any) -> bool:
    try:
        TypeAdapter(Annotated[field.annotation, field]).validate_python(value)
    except ValidationError:
        return False
    return True


def number(text: str) -> float:
    return 2.0 ** int(text[2:]) if text.startswith("2^") else float(text)


def test_every_key_has_a_row_and_no_other() -> None:
    assert len(KEYS) > 100
    assert list(ROWS) == sorted(KEYS, key=list(ROWS).index)


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_described_with_its_default(key: str) -> None:
    kind, default, _, meaning = ROWS[key]
    field = KEYS[key]
    assert field.description
    assert meaning.rstrip(".")
    assert kind
    if field.is_required():
        assert default == "needed"
    elif held(field.annotation) is None:
        value = field.get_default(call_default_factory=True)
        assert json.loads(default.strip("`")) == json.loads(json.dumps(value, default=str))


@pytest.mark.parametrize("key", [key for key, cells in ROWS.items() if re.search("[≥>≤<]", cells[2])])
def test_the_range_of_a_number_is_what_is_accepted(key: str) -> None:
    said = [re.fullmatch(r"(0 or )?([≥>≤<]) (\S+)", part) for part in ROWS[key][2].split(", ")]
    rules = [(bool(rule[1]), ORDER[rule[2]], number(rule[3])) for rule in said if rule]
    whole = ROWS[key][0].startswith(("integer", "list of integer"))
    for _, _, bound in rules:
        away = max(1, int(bound * 1e-6)) if whole else 1e-6 * max(abs(bound), 1e-15)
        for value in map(int if whole else float, (0, bound, bound - away, bound + away)):
            expected = all((zero and value == 0) or holds(value, bound) for zero, holds, bound in rules)
            given = [value, value] if ROWS[key][0].startswith("list") else value
            assert accepts(KEYS[key], given) == expected, (value, ROWS[key])
