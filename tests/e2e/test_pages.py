"""Every code block of the README and of the site, as a reader runs it: page by page, in a folder of its own.

Recipes are cut to two generations of eight members. What a block is marked not to be run is read all the same: options,
recipes, overrides, extras and targets that it names exist.
"""

import builtins
import importlib.util
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import Any

import click
import pytest
import typer
import yaml
from command_line import eggroll
from pages import PAGES, ROOT, Block, blocks

from eggroll_rl.cli import app
from eggroll_rl.config import Recipe, load_recipe, loading
from eggroll_rl.data.dataset import load_data
from eggroll_rl.data.sources import is_file, is_generated
from eggroll_rl.system.shipped import shipped_recipes

LANGUAGES = {"bash", "python", "yaml", "toml", "json", "text", "math"}
MARKS = {"data-not-run", "data-part-of"}
GENERATIONS = 2
SMALL = ["population.size=8", "evaluation.n=4", "evaluation.every=0", "snapshots.every=1", "minutes=null"]
OF_TEXT = ["text.group=2"]
OF_ANSWERS = ["data.prompts=2", "grpo.prompts=2", "grpo.group=4", "grpo.minibatches=1"]
SMALLER = {  # options of commands, behind those that a page gives
    "evaluate": ["--n", "4"],
    "bench": ["--rows", "1", "--members", "4", "--tokens", "16", "--repeats", "1"],
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = set(PROJECT["optional-dependencies"])


def small(values: dict[str, Any], overrides: Any = ()) -> Recipe:
    """The recipe, cut. That of a run, which has every key, is as it began; one that is to go on takes one generation
    more."""
    if values.keys() >= {"description", "parameters", "snapshots"}:
        further = any(text.startswith(("generations=", "minutes=")) for text in overrides)
        return FULL(values, [f"generations={values['generations'] + 1}", "minutes=null"] if further else overrides)
    of_kind = OF_TEXT if values.get("text") else OF_ANSWERS
    return FULL(values, [*overrides, *SMALL, *of_kind, f"generations={GENERATIONS}"])


FULL = loading.build_recipe


def lines(text: str) -> Iterator[list[str]]:
    """The commands of a block of shell, in words."""
    variables: dict[str, str] = {}
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words and re.fullmatch(r"[A-Z_]+=\S*", words[0]) and len(words) == 1:
            name, _, value = words[0].partition("=")
            variables[name] = value
        elif words:
            yield [Template(word).safe_substitute(variables) for word in words]


def parsed(words: list[str]) -> click.Context:
    """The command line as typer reads it; raises click's error where it has no such command, option or argument."""
    group: Any = typer.main.get_command(app)
    context = group.make_context("eggroll-rl", list(words))
    name, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])
    return command.make_context(name, rest, parent=context)


def check_command(words: list[str]) -> None:
    """What can be known of a command without running it."""
    program, *rest = words
    if Path(program).name in ("pip", "uv"):
        for extra in re.findall(r"(?:eggroll-rl|\.)\[([\w,-]+)\]", " ".join(rest)):
            assert set(extra.split(",")) <= EXTRAS
    elif program == "make":
        subprocess.run(["make", "-n", *rest], cwd=ROOT, check=True, capture_output=True)
    elif Path(program).name in ("python", "python3") and rest[0] == "-m":
        assert rest[1] in sys.stdlib_module_names or importlib.util.find_spec(rest[1])
    elif program == "python" and rest[0].startswith("examples/"):
        assert (ROOT / rest[0]).is_file()
    elif Path(program).name == "eggroll-rl":
        context = parsed(rest)
        recipe = context.params.get("recipe")
        if recipe in shipped_recipes():
            load_recipe(recipe, context.params.get("overrides") or [])


def run_command(folder: Path, words: list[str]) -> None:
    """Run what a page tells to run."""
    program, *rest = words
    if program == "eggroll-rl":
        rest += SMALLER.get(rest[0], [])
        if "--k" in rest:
            rest += ["--k", "2"]
        said = eggroll(folder, *rest)
        assert said.code == 0, f"{' '.join(words)}: {said.err}"
    elif program == "python":
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, *rest], cwd=folder, env=environment, check=True)
    else:
        assert program in ("pip", "make"), f"{program}: mark the block data-not-run, and say why"


class Reader:
    """Who works through a page: what he wrote and ran so far is there for the next block."""

    def __init__(self, folder: Path, page: list[Block]):
        self.folder, self.names = folder, {"__name__": "__main__", "__builtins__": builtins}
        shell = "\n".join(block.text for block in page if block.language == "bash")
        self.run_by_name = set(re.findall(r"^python (\w+\.py)", shell, re.MULTILINE))

    def read(self, block: Block) -> None:
        if block.file and not block.file.startswith("examples/"):
            (self.folder / block.file).write_text(block.text)
        if part_of := block.attributes.get("data-part-of"):
            source, code = (ROOT / part_of).read_text(), textwrap.dedent(block.text)
            assert any(textwrap.indent(code, " " * depth) in source for depth in range(0, 16, 4)), "has other lines"
        else:
            getattr(self, block.language)(block)

    def python(self, block: Block) -> None:
        code = compile(block.text, str(block), "exec")
        if block.not_run:
            return
        if block.file is None:
            exec(code, self.names)
        elif block.file not in self.run_by_name:
            runpy.run_path(block.file, run_name=Path(block.file).stem)

    def bash(self, block: Block) -> None:
        for words in lines(block.text):
            check_command(words)
            if not block.not_run:
                run_command(self.folder, words)

    def yaml(self, block: Block) -> None:
        needed = {"model": "m", "rewards": [{"fn": "mine.py:reward"}]}
        recipe = Recipe.model_validate(needed | yaml.safe_load(block.text))
        name = recipe.data.name
        if is_generated(name) or (is_file(name) and Path(name).exists()):
            assert len(load_data(recipe.data, 0).batch(0).prompts) == recipe.data.prompts

    def toml(self, block: Block) -> None:
        tomllib.loads(block.text)

    def json(self, block: Block) -> None:
        json.loads(block.text)

    def text(self, block: Block) -> None:
        """What somebody says."""

    math = text  # which the build of the site reads


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader works: the examples lie beside him, and every recipe is cut."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "build_recipe", small)
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_worked_through(page: str, folder: Path) -> None:
    found = blocks(page)
    reader = Reader(folder, found)
    for block in found:
        try:
            reader.read(block)
        except Exception as error:
            error.add_note(f"in {block}")
            raise


@pytest.mark.parametrize("page", PAGES)
def test_what_is_not_run_says_why(page: str) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{block}: name the language of the fence, one of {sorted(LANGUAGES)}"
        assert set(block.attributes) <= MARKS, block
        assert block.not_run is None or len(block.not_run.split()) > 2, f"{block}: say why it is not run"


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("bash", "eggroll-rl train countdown_tiny population.sise=4"),
        ("bash", "eggroll-rl train countdown_small"),
        ("bash", "eggroll-rl evaluate runs/x --samples 8"),
        ("bash", "eggroll-rl recommend"),
        ("bash", "pip install 'eggroll-rl[vlm]'"),
        ("bash", "make tset"),
        ("bash", "sbatch job"),
        ("python", "from eggroll_rl import Evolutions"),
        ("yaml", "population: {size: 3}"),
        ("toml", "[project"),
        ("json", "{'a': 1}"),
    ],
)
def test_a_block_with_a_fault_fails(language: str, text: str, folder: Path) -> None:
    block = Block("page.md", 1, language, {}, text + "\n")
    with pytest.raises(Exception):  # noqa: B017  whichever kind that language's reader has
        Reader(folder, [block]).read(block)
