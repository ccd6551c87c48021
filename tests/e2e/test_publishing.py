"""A run goes to the hub and comes back: its files, its card, and whether anyone can verify it."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from command_line import Outcome, eggroll
from e2e.test_cli import desk
from fake_hub import OWNER, TOKEN, Hub, serving
from safetensors.torch import load, load_file, save

from eggroll_rl.ask import ask
from eggroll_rl.hub import card_of, push_to_hub
from eggroll_rl.runs.folder import RunFolder
from eggroll_rl.system.errors import UsageError

NAME = f"{OWNER}/first"


class Pushed(NamedTuple):
    folder: Path
    run: Path
    hub: Hub
    outcome: Outcome


def command(folder: Path, hub: Hub, *arguments: str, token: str | None = TOKEN) -> Outcome:
    """``eggroll-rl`` in a process of its own, whose hub is this one and whose cache is new."""
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "HOME": str(folder), "HF_HUB_OFFLINE": "0"}
    environment = {**os.environ, **own, **({"HF_TOKEN": token} if token else {})}
    line = [sys.executable, "-m", "eggroll_rl", *arguments]
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory, model_folder: Callable[[str], Path]) -> Iterator[Pushed]:
    """Three generations, trained and pushed; the repository had a model in two files before."""
    folder = desk(tmp_path_factory.mktemp("pushed"), model_folder("llama"))
    assert eggroll(folder, "train", "recipe.yaml").code == 0
    with serving() as hub:
        hub.files[NAME] = {"LICENSE": b"mine", "model-00001-of-00002.safetensors": b"old", "README.md": b"old"}
        outcome = command(folder, hub, "export", "runs/first", "--push", NAME)
        yield Pushed(folder, folder / "runs" / "first", hub, outcome)


def test_what_is_pushed_is_the_model_and_all_that_tells_of_it(pushed: Pushed) -> None:
    assert pushed.outcome == (0, f"{pushed.hub.url}/{NAME}\n", "")
    files = pushed.hub.files[NAME]
    of_run = {path.name for path in pushed.run.iterdir() if path.is_file()}
    of_model = {path.name for path in (pushed.run / "model").iterdir()}
    assert set(files) == (of_run | of_model | {"LICENSE", "README.md", "eggroll.json"}) - {".owner", "lock"}
    for path in [*pushed.run.iterdir(), *(pushed.run / "model").iterdir()]:
        assert path.name not in files or files[path.name] == path.read_bytes()
    assert {"model.safetensors", "learning_curve.png"} <= pushed.hub.by_lfs
    assert load(files["model.safetensors"]).keys() == load_file(pushed.run / "model" / "model.safetensors").keys()
    assert pushed.hub.commits == ["Generation 3 of an EGGROLL run"]


def test_the_card_says_what_it_is_and_how_good(pushed: Pushed) -> None:
    text = pushed.hub.files[NAME]["README.md"].decode()
    _, head, body = text.split("---\n", 2)
    metadata = yaml.safe_load(head)
    assert metadata["library_name"] == "transformers"
    assert {"eggroll", "evolution-strategies"} <= set(metadata["tags"])
    assert "base_model" not in metadata  # a folder of this machine
    with RunFolder(pushed.run).journal() as journal:
        for generation in (0, 3):
            mark = journal.evaluations[generation]
            interval = f"{100 * mark['low']:.1f}\u2013{mark['high']:.1%}"
            assert f"| {generation} | {mark['accuracy']:.1%} | {interval} | {mark['n']} |" in body
        assert journal.hashes[3] in body
        assert journal.header.base_sha256 in body
    assert "](learning_curve.png)" in body
    assert f"eggroll-rl verify {NAME}" in body
    assert "8 members" in body
    assert "The base model is a folder of the author's" in body


def test_anyone_can_verify_it(pushed: Pushed, tmp_path: Path) -> None:
    outcome = command(tmp_path, pushed.hub, "verify", NAME, token=None)
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert "journalled hash of generation 3: ok" in lines
    assert lines[-1].endswith(": ok")
    assert not list(tmp_path.glob("hf/hub/models--*/snapshots/.*"))  # nothing is left beside it


@pytest.mark.parametrize("generation", [1, 3])
def test_any_generation_of_it_can_be_asked(pushed: Pushed, tmp_path: Path, generation: int) -> None:
    """One that is rebuilt, and the one that is there."""
    here = io.StringIO()
    ask(str(pushed.run), "7 + 8 =", generation=generation, output=here)
    there = command(tmp_path, pushed.hub, "ask", NAME, "7 + 8 =", "--generation", str(generation), token=None)
    assert (there.code, there.out) == (0, here.getvalue()), there.err
    assert not list(tmp_path.glob("hf/hub/models--*/snapshots/*/.*"))


def test_other_weights_are_found_out(pushed: Pushed, tmp_path: Path) -> None:
    forged = f"{OWNER}/forged"
    pushed.hub.files[forged] = dict(pushed.hub.files[NAME])
    weights = load(pushed.hub.files[NAME]["model.safetensors"])
    next(iter(weights.values())).view(-1)[0] += 1e-3
    pushed.hub.files[forged]["model.safetensors"] = save(weights)
    outcome = command(tmp_path, pushed.hub, "verify", forged, token=None)
    assert outcome.code == 1
    assert outcome.out.splitlines()[-1].endswith(": the replay has other weights")


def test_any_generation_can_be_pushed_and_verified(pushed: Pushed, tmp_path: Path) -> None:
    name = f"{OWNER}/second"
    outcome = command(
        pushed.folder, pushed.hub, "export", "runs/first", "--generation", "1", "--push", name, "--private"
    )
    assert outcome.code == 0, outcome.err
    assert pushed.hub.private[name]
    assert json.loads(pushed.hub.files[name]["eggroll.json"]) == {"generation": 1}
    assert pushed.hub.files[name]["model.safetensors"] != pushed.hub.files[NAME]["model.safetensors"]
    assert "after 1 generations" in pushed.hub.files[name]["README.md"].decode()
    assert not [path for path in pushed.run.iterdir() if path.name.endswith(".tmp")]
    verified = command(tmp_path, pushed.hub, "verify", name, token=None)
    assert verified.code == 0, verified.err
    assert verified.out.splitlines()[-2].endswith(": ok")


@pytest.mark.parametrize(
    ("arguments", "token", "expected"),
    [
        (("verify", f"{OWNER}/nothing"), None, "no run 'somebody/nothing', neither as a folder nor on the hub"),
        (("verify", f"{OWNER}/bare"), None, "somebody/bare on the hub is no run"),
        (("ask", NAME, "7 + 8 =", "--generation", "9"), None, "no generation 9: "),
        (("export", "runs/first", "--push", "another/first"), TOKEN, "cannot push to another/first: "),
        (("export", "runs/first", "--push", NAME), "hf_wrong", f"cannot push to {NAME}: "),
        (("export", "runs/first", "--push", NAME), None, "without a token: log in by `hf auth login`, or set HF_TOKEN"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    pushed: Pushed, arguments: tuple[str, ...], token: str | None, expected: str
) -> None:
    pushed.hub.files[f"{OWNER}/bare"] = {"config.json": b"{}"}
    outcome = command(pushed.folder, pushed.hub, *arguments, token=token)
    assert outcome.code == 2
    (line,) = outcome.err.splitlines()
    assert line.startswith("error: ")
    assert expected in line


@pytest.mark.parametrize("name", ["first", "a/b/c", "/first", "somebody/", "somebody/two words", "some..body/x", ""])
def test_a_name_that_is_no_place_is_one_line(pushed: Pushed, name: str) -> None:
    with pytest.raises(UsageError, match="names no place on the hub") as error:
        push_to_hub(pushed.run, name)
    assert "\n" not in str(error.value)


def test_what_cannot_be_pushed_is_named(pushed: Pushed, tmp_path: Path) -> None:
    for folder, generation, expected in (
        (tmp_path / "nowhere", None, "is no run: it has no journal.jsonl"),
        (pushed.run, 4, "no generation 4: "),
        (pushed.run, None, "HF_HUB_OFFLINE is set"),
    ):
        with pytest.raises(UsageError, match=expected):
            push_to_hub(folder, NAME, generation)
    cut = tmp_path / "cut"
    cut.mkdir()
    lines = (pushed.run / "journal.jsonl").read_bytes().splitlines(keepends=True)
    end = next(index for index, line in enumerate(lines) if b'"kind":"end"' in line.replace(b" ", b""))
    (cut / "journal.jsonl").write_bytes(b"".join(lines[:end]))
    with pytest.raises(UsageError, match=r"was cut short after 3 generations: .*--generation 3"):
        push_to_hub(cut, NAME)
    outcome = eggroll(pushed.folder, "export", "runs/first")
    assert outcome.code == 2
    assert "by --push OWNER/NAME" in outcome.err


def test_a_card_knows_the_license_of_an_embedded_base(pushed: Pushed) -> None:
    with RunFolder(pushed.run).journal() as journal:
        journal.header = journal.header.model_copy(
            update={"recipe": journal.recipe.model_copy(update={"model": "embedded:llama-countdown"})}
        )
        text = card_of(RunFolder(pushed.run), journal, 3, NAME)
    assert yaml.safe_load(text.split("---\n")[1])["license"] == "apache-2.0"
    assert "folder of the author's" not in text
