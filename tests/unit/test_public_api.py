"""What is public: named in the docs, typed, of one version, and with the signatures that are on record.

``python tests/unit/test_public_api.py`` writes the record anew.
"""

import dataclasses
import inspect
import re
import subprocess
import sys
import tomllib
from collections import ChainMap
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

import eggroll_rl

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "tests" / "public_api.txt"
NAMED = re.findall(r"^::: (\S+)", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
HEAVY = ("ray", "trl", "vllm")


def found(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)


def described(name: str, thing: Any) -> Iterator[str]:
    """The signatures of a function, or of a class, its public methods and the fields of a dataclass."""
    yield f"{name}{signature(thing)}"
    if not inspect.isclass(thing):
        return
    if dataclasses.is_dataclass(thing):
        written = ChainMap(*(inspect.get_annotations(base) for base in thing.__mro__))  # parsers resolve ``field.type``
        yield from (
            f"{name}.{field.name}: {text(written[field.name])} = {default(field)}"
            for field in dataclasses.fields(thing)
        )
    own = {
        name: value
        for base in thing.__mro__
        if base.__module__.startswith("eggroll_rl")
        for name, value in vars(base).items()
    }
    for method, value in sorted(own.items()):
        if method.startswith("_"):
            continue
        if isinstance(value, property):
            yield f"{name}.{method} -> {text(inspect.signature(value.fget).return_annotation)}"  # type: ignore[arg-type]
        elif inspect.isroutine(value):
            yield f"{name}.{method}{signature(getattr(thing, method))}"


def signature(thing: Any) -> str:
    if dataclasses.is_dataclass(thing):
        return ""
    try:
        return re.sub(r"<function (\w+)[^>]*>", r"\1", str(inspect.signature(thing))).replace("'", '"')
    except ValueError:  # an exception has that of its base, which Python does not tell
        return ""


def text(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def default(field: Any) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    if isinstance(field.default, BaseModel):  # a section of a recipe, which has a reference of its own
        return f"{type(field.default).__name__}()"
    return "needed" if field.default is dataclasses.MISSING else repr(field.default)


def record() -> str:
    return "\n".join(line for name in sorted(NAMED) for line in described(name, found(name))) + "\n"


def test_signatures_are_those_on_record() -> None:
    now, then = record().splitlines(), RECORD.read_text(encoding="utf-8").splitlines()
    assert sorted(set(now) - set(then)) == []
    assert sorted(set(then) - set(now)) == []


def test_the_package_says_what_is_public() -> None:
    assert set(eggroll_rl.__all__) == set(dir(eggroll_rl))
    for name in set(eggroll_rl.__all__) - {"__version__"}:
        assert f"eggroll_rl.{name}" in NAMED
    for name in NAMED:
        module, _, attribute = name.rpartition(".")
        exported = getattr(import_module(module), "__all__", None)
        assert exported is None or attribute in exported, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        eggroll_rl.nothing  # noqa: B018


def test_public_modules_are_typed_strictly() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["overrides"]
    strict = [module.removesuffix(".*") for one in settings if one.get("warn_return_any") for module in one["module"]]
    for name in NAMED:
        module = inspect.getmodule(found(name)).__name__  # type: ignore[union-attr]
        assert any(f"{module}.".startswith(f"{one}.") for one in strict if one != "eggroll_rl"), module


def test_there_is_one_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert eggroll_rl.__version__ == version("eggroll-rl") == citation["version"]
    assert "version" in project["dynamic"]


def test_the_trainer_loads_nothing_that_it_does_not_need(tmp_path: Path) -> None:
    code = (
        "import sys; from eggroll_rl import EggrollConfig, EggrollTrainer; EggrollConfig(); print(sorted(sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert not [name for name in (*HEAVY, "torch", "transformers", "datasets") if f"'{name}'" in said]


if __name__ == "__main__":
    RECORD.write_text(record(), encoding="utf-8")
