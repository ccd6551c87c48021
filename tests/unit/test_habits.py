"""Workflows, images and hooks name what is there: targets of make, extras, files."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from eggroll_rl import __version__

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


def commands(workflow: dict[str, Any]) -> list[str]:
    return [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_what_there_is(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}  # a job that needs more says so itself
    for command in commands(workflow):
        for targets in re.findall(r"\bmake ([\w./ -]+)", command):
            subprocess.run(["make", "-n", *targets.split()], cwd=ROOT, check=True, capture_output=True)
        for script in re.findall(r"^\.ci/\w+", command, re.MULTILINE):
            assert (ROOT / script).stat().st_mode & 0o100


def test_a_release_is_of_the_version_that_its_tag_names() -> None:
    (workflow,) = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in WORKFLOWS if path.stem == "release"]
    (check,) = [command for command in commands(workflow) if "GITHUB_REF_NAME" in command]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for tag, is_right in ((f"v{__version__}", True), ("v99.0.0", False)):
        environment = {"PATH": path, "GITHUB_REF_NAME": tag}
        done = subprocess.run(["bash", "-ec", check], cwd=ROOT, env=environment, check=False)
        assert (done.returncode == 0) is is_right


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem
)
def test_a_form_asks_what_it_says(path: Path) -> None:
    """GitHub shows no form with a key that it does not know."""
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= form.keys()
    for field in form["body"]:
        assert field["attributes"].keys() <= {"label", "description", "placeholder", "value", "render"}
        assert field["attributes"]["label"]


def test_ci_builds_the_site_and_runs_the_tests() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert {"make test", "make lint", "make docs", "make test-vllm"} <= set(script.splitlines())


@pytest.mark.parametrize("path", [*WORKFLOWS, *DOCKERFILES], ids=lambda path: path.name)
def test_extras_exist(path: Path) -> None:
    for names in re.findall(r"\.\[([\w,-]+)\]", path.read_text(encoding="utf-8")):
        assert set(names.split(",")) <= EXTRAS


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_trains_a_recipe_that_ships(path: Path) -> None:
    entry, recipe = (ROOT / path).read_text(encoding="utf-8").splitlines()[-2:]
    assert entry == 'ENTRYPOINT ["eggroll-rl"]'
    command, name, *_ = re.findall(r'"([^"]+)"', recipe)
    assert command == "train"
    assert (ROOT / "recipes" / f"{name}.yaml").is_file()


def test_linters_of_commits_are_those_of_the_project() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert {hook["id"] for repository in hooks for hook in repository["hooks"]} == {"ruff-check", "ruff-format", "mypy"}
