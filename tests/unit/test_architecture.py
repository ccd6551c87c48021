"""Who may import whom, read from the syntax trees: imports inside functions count, those for type checkers do not."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OUTER = {"rewards": "eggroll_rl.rewards", "recipes": "eggroll_rl.recipes", "eval": "eggroll_rl.eval"}
ROOMS = (  # from the bottom up; a module imports rooms below its own, and its own; beside each other: not each other
    {"system"},
    {"config"},
    {"es"},
    {"models", "data", "scoring"},
    {"engines"},
    {"runs"},
    {"report"},
    {"hub"},
    {"train", "grpo"},
    {"comparison", "planning", "eval", "ask"},
    {"evolution", "trainer", "recipes"},
    {"cli"},
    {"__main__"},
)
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
ENGINES = "eggroll_rl.engines"
HEAVY = {"vllm", "ray", "trl", "transformers"}


def module_name(path: Path) -> str:
    folder, *inner = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([OUTER.get(folder, folder), *inner])


def runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below ``node`` but those under ``if TYPE_CHECKING:``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            children = child.orelse
        else:
            children = [child]
        for kept in children:
            yield from (kept, *runtime_nodes(kept))


def imports(source: str, name: str) -> set[str]:
    """Absolute names that the module ``name`` imports: of ``from a import b`` both ``a`` and ``a.b``."""
    found: set[str] = set()
    for node in runtime_nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = name.split(".")[: -node.level] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return found


def within(modules: set[str], *packages: str) -> set[str]:
    return {module for module in modules if any(f"{module}.".startswith(f"{package}.") for package in packages)}


IMPORTS = {
    module_name(path): imports(path.read_text(encoding="utf-8"), module_name(path))
    for folder in ("eggroll_rl", *OUTER)
    for path in sorted((ROOT / folder).rglob("*.py"))
}
OUTER_MODULES = sorted(within(set(IMPORTS), *OUTER.values()))
LIBRARY = sorted(set(IMPORTS) - set(OUTER_MODULES))


def test_the_reader_of_imports() -> None:
    source = """
from typing import TYPE_CHECKING
import torch.nn as nn
from . import sibling
from .other import name
if TYPE_CHECKING:
    import hidden
else:
    import shown
def later():
    from ..up import thing
"""
    expected = {"typing", "typing.TYPE_CHECKING", "torch.nn", "shown", "pkg.sub", "pkg.sub.sibling"}
    expected |= {"pkg.sub.other", "pkg.sub.other.name", "pkg.up", "pkg.up.thing"}
    assert imports(source, "pkg.sub.module") == imports(source, "pkg.sub.__init__") == expected
    assert within({"a.b", "a.b.c", "a.bc"}, "a.b") == {"a.b", "a.b.c"}
    assert {"eggroll_rl.config.__init__", "eggroll_rl.rewards.__init__", "eggroll_rl.engines.base"} <= set(IMPORTS)


@pytest.mark.parametrize("module", sorted(within(set(OUTER_MODULES), OUTER["rewards"])))
def test_rewards_import_nothing_of_ours_but_siblings_and_no_torch(module: str) -> None:
    ours = within(IMPORTS[module], "eggroll_rl", *OUTER)
    assert ours == within(ours, OUTER["rewards"])
    assert not within(IMPORTS[module], "torch")


def room_of(module: str) -> str:
    return module.removeprefix("eggroll_rl.").split(".")[0]


@pytest.mark.parametrize(
    "module", sorted(set(IMPORTS) - {"eggroll_rl.__init__"} - within(set(IMPORTS), OUTER["rewards"]))
)
def test_imports_go_down_the_table_of_rooms(module: str) -> None:
    own = room_of(module)
    modules = {
        name for name in within(IMPORTS[module], "eggroll_rl") if name in IMPORTS or f"{name}.__init__" in IMPORTS
    }
    rooms = {room_of(name) for name in modules} - {own, "eggroll_rl"}
    assert {room for room in rooms if LEVEL[room] >= LEVEL[own]} == set()


@pytest.mark.parametrize("module", sorted(within(set(LIBRARY), "eggroll_rl.es", "eggroll_rl.system")))
def test_pure_rooms_import_no_engine_and_no_model(module: str) -> None:
    assert not within(IMPORTS[module], *HEAVY)


@pytest.mark.parametrize("module", [name for name in LIBRARY if name == "eggroll_rl.train"])
def test_the_loop_imports_no_concrete_engine(module: str) -> None:
    concrete = within(set(IMPORTS), ENGINES) - {f"{ENGINES}.__init__", f"{ENGINES}.base", f"{ENGINES}.build"}
    assert not within(IMPORTS[module], *concrete)


@pytest.mark.parametrize("module", [name for name in LIBRARY if room_of(name) != "cli"])
def test_the_library_imports_no_reward_recipe_or_evaluation(module: str) -> None:
    assert not within(IMPORTS[module], *OUTER, *OUTER.values())


@pytest.mark.parametrize("module", OUTER_MODULES)
def test_outer_folders_import_by_their_installed_names(module: str) -> None:
    assert not within(IMPORTS[module], *OUTER)


def test_no_module_bears_the_name_of_one_in_the_standard_library() -> None:
    assert not {name.rpartition(".")[2] for name in IMPORTS} & sys.stdlib_module_names


def test_importing_the_library_loads_nothing_heavy(tmp_path: Path) -> None:
    code = f"import sys, eggroll_rl; print(sorted({HEAVY!r} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"
