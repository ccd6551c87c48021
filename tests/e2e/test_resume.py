"""A run that was cut short ends, once resumed, as if it had not been; and any generation can be built again."""

import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from cut_runs import CUT, GENERATIONS, start, weights, write_cut_task
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from benchmarks.tiny_task import outcome, write_task
from eggroll_rl import grpo
from eggroll_rl import train as training
from eggroll_rl.cli import app
from eggroll_rl.config import load_recipe
from eggroll_rl.engines.local.engine import LocalEngine
from eggroll_rl.es.hashing import tensors_hash
from eggroll_rl.models.blinkdl import load_pth
from eggroll_rl.runs.folder import RunFolder
from eggroll_rl.runs.journal import Journal
from eggroll_rl.runs.journal import records as records_module
from eggroll_rl.runs.rebuild import export, verify
from eggroll_rl.scoring import RewardError
from eggroll_rl.system.errors import UsageError
from eggroll_rl.system.ownership import owned


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny task, with a run that was never cut (``straight``) and one that was by a signal (``cut``)."""
    return write_cut_task(tmp_path_factory.mktemp("task"))


@pytest.fixture
def cut(task: Path, tmp_path: Path) -> Path:
    """A copy of the run that was cut."""
    return Path(shutil.copytree(task / "cut", tmp_path / "run"))


@pytest.mark.parametrize(
    "lost", ["nothing", "snapshots", "newest snapshot", "views", "one view", "recipe", "model half written"]
)
def test_a_resumed_run_is_the_run_that_was_never_cut(task: Path, cut: Path, lost: str) -> None:
    assert len(Journal(cut / "journal.jsonl")) == CUT
    snapshot = cut / "snapshots" / "00000005.safetensors"
    if lost == "snapshots":
        shutil.rmtree(cut / "snapshots")
    elif lost == "newest snapshot":
        snapshot.write_bytes(snapshot.read_bytes()[:-1] + b"\x55")
    elif lost == "views":
        (cut / "metrics.jsonl").unlink()
        os.truncate(cut / "samples.jsonl", 100)
    elif lost == "one view":
        (cut / "answers.jsonl").unlink()
    elif lost == "recipe":
        (cut / "recipe.yaml").unlink()
    elif lost == "model half written":
        (cut / "model.tmp").mkdir()
        (cut / "model.tmp" / "config.json").write_text("{")
    training.resume(cut)
    assert outcome(cut) == outcome(task / "straight")


def test_a_full_disk_ends_the_run_and_with_more_room_it_goes_on(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    room, write = 6, os.write

    def fills(descriptor: int, data: Any) -> int:
        nonlocal room
        room -= 1
        if room < 0:
            write(descriptor, data[:50])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    recipe = load_recipe(task / "recipe.yaml", [f"generations={GENERATIONS}", f"output_dir={tmp_path / 'run'}"])
    with monkeypatch.context() as patch:
        patch.setattr(records_module.os, "write", fills)
        with pytest.raises(UsageError, match="No space left on device"):
            training.train(recipe)
    assert f"eggroll-rl train --resume {tmp_path / 'run'}" in capsys.readouterr().out
    training.resume(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(task / "straight")


@contextmanager
def room(size: int) -> Iterator[None]:
    """The operating system refuses what makes a file larger than so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("limit", "every", "file"),
    [(12_000, 0, "journal.jsonl"), (60_000, 5, "00000005.safetensors"), (60_000, 0, "model")],
)
def test_no_room_for_one_file_leaves_all_others_whole(
    task: Path, tmp_path: Path, limit: int, every: int, file: str
) -> None:
    settings = [f"generations={GENERATIONS}", f"snapshots.every={every}", "population.whitening=null"]
    recipe = load_recipe(task / "recipe.yaml", [*settings, f"output_dir={tmp_path / 'run'}"])
    whole = training.train(load_recipe(task / "recipe.yaml", [*settings, f"output_dir={tmp_path / 'whole'}"]))
    with room(limit), pytest.raises(UsageError, match=rf"{file} cannot be written: .*File too large"):
        training.train(recipe)
    assert not list((tmp_path / "run").rglob("*.tmp"))
    training.resume(tmp_path / "run")
    ended, straight = outcome(tmp_path / "run"), outcome(whole.path)
    assert all(ended[key] == straight[key] for key in ("metrics.jsonl", "samples.jsonl", "model/model.safetensors"))


FRAGILE = """
from pathlib import Path

def late(prompts, completions, **columns):
    with Path(__file__).with_suffix(".calls").open("a") as calls:
        calls.write("x")
        if calls.tell() == 6:
            raise RuntimeError("out of order")
    return [sum(map(ord, text)) / (128 * max(1, len(text))) for text in completions]
"""


def test_a_reward_that_fails_ends_a_run_that_wants_it_so(
    task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "reward.py").write_text(FRAGILE)
    rewards = f'rewards=[{{fn: "{tmp_path}/reward.py:late"}}]'
    with pytest.raises(RewardError, match=r"failed \(exception\): RuntimeError: out of order"):
        start(task, "fragile", rewards, "scoring.on_error=raise", f"output_dir={tmp_path / 'run'}")
    # Before: both rewards were tried, generation 0 was measured, and two generations were scored.
    assert "cut short after 2 generations" in capsys.readouterr().out
    training.resume(tmp_path / "run")
    assert weights(tmp_path / "run" / "model") == weights(task / "straight" / "model")


def test_a_complete_run_says_so_and_takes_more_generations(
    task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(task / "straight", tmp_path / "run"))
    before = outcome(run)
    training.resume(run)
    assert "nothing is left" in capsys.readouterr().out
    assert outcome(run) == before
    resumed = training.resume(run, [f"generations={GENERATIONS + 2}", "minutes=100"])
    assert load_recipe(run / "recipe.yaml").generations == GENERATIONS + 2
    metrics = resumed.metrics()
    assert [r["generation"] for r in metrics if "reward_mean" in r] == list(range(GENERATIONS + 2))
    assert [r["generation"] for r in metrics if "accuracy" in r] == [0, 7, GENERATIONS, GENERATIONS + 2]
    assert all(finding.fault is None for finding in verify(run))


def test_minutes_already_spent_count(cut: Path) -> None:
    spent = Journal(cut / "journal.jsonl").seconds / 60
    run = training.resume(cut, [f"minutes={spent / 2}"])
    assert len(run.journal()) == run.journal().ended == CUT
    assert run.metrics()[-1]["generation"] == CUT
    assert "accuracy" in run.metrics()[-1]


def test_only_generations_and_minutes_may_change(cut: Path) -> None:
    with pytest.raises(UsageError, match=r"population\.sigma.*generations and minutes"):
        training.resume(cut, ["population.sigma=0.1"])
    recipe = cut / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("sigma: 0.05", "sigma: 0.06"))
    with pytest.raises(UsageError, match=r"recipe\.yaml was changed: population"):
        training.resume(cut)


def test_another_base_model_is_refused_and_nothing_changes(task: Path, cut: Path) -> None:
    base, before = task / "base" / "model.safetensors", outcome(cut)
    content, tensors = base.read_bytes(), load_file(base)
    try:
        save_file(tensors | {"lm_head.weight": tensors["lm_head.weight"] + 1}, base, {"format": "pt"})
        with pytest.raises(UsageError, match="is not the model that this run began with"):
            training.resume(cut)
    finally:
        base.write_bytes(content)
    assert outcome(cut) == before


def test_training_into_a_run_that_was_cut_says_how_to_go_on(task: Path, cut: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(f"eggroll-rl train --resume {cut}")):
        training.train(load_recipe(task / "recipe.yaml", [f"output_dir={cut}"]))
    with pytest.raises(UsageError, match="exists and is never overwritten"):
        training.train(load_recipe(task / "recipe.yaml", [f"output_dir={task / 'straight'}"]))
    with pytest.raises(UsageError, match="is no run"):
        training.resume(tmp_path)


def test_any_generation_is_built_from_the_base_and_the_journal_alone(task: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(task / "straight", tmp_path / "run"))
    saved = load_file(run / "snapshots" / "00000005.safetensors")
    shutil.rmtree(run / "snapshots")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        export(run, tmp_path / "last")
        export(run, tmp_path / "fifth", 5)
        export(run, tmp_path / "base", 0)
    finally:
        torch.set_num_threads(threads)
    assert weights(tmp_path / "last") == weights(run / "model") != weights(task / "base")
    assert weights(tmp_path / "base") == weights(task / "base")
    fifth = load_file(tmp_path / "fifth" / "model.safetensors")
    shown = {name.removeprefix("average."): tensor for name, tensor in saved.items() if name.startswith("average.")}
    assert tensors_hash({name: fifth[name] for name in shown}) == tensors_hash(shown)
    assert (tmp_path / "last" / "tokenizer.json").is_file()
    for out, generation, message in (("last", None, "exists"), ("new", 13, "no generation 13"), ("a.pth", 1, "RWKV-7")):
        with pytest.raises(UsageError, match=message):
            export(run, tmp_path / out, generation)


def test_an_rwkv_run_is_resumed_and_exported_as_a_pth_file(tmp_path: Path) -> None:
    write_task(tmp_path, "rwkv")
    for name, generations in (("straight", 4), ("run", 2)):
        steady = ["optimizer.schedule=constant", "population.final_sigma=null"]
        start(tmp_path, name, *steady, f"generations={generations}")
    training.resume(tmp_path / "run", ["generations=4"])
    assert weights(tmp_path / "run" / "model") == weights(tmp_path / "straight" / "model") != weights(tmp_path / "base")
    export(tmp_path / "run", tmp_path / "model.pth")
    size = (tmp_path / "model.pth").stat().st_size
    for limit, file in ((size - 1, r"a\.pth"), (size // 2, "model")):  # which is saved on the way
        with room(limit), pytest.raises(UsageError, match=f"{file} cannot be written: .*File too large"):
            export(tmp_path / "run", tmp_path / "a.pth")
        assert not list(tmp_path.glob("a.pth*"))
    assert tensors_hash(load_pth(tmp_path / "model.pth").state_dict()) == weights(tmp_path / "run" / "model")


def test_verify_finds_what_was_changed(task: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(task / "straight", tmp_path / "run"))
    faults = {Path(what).name: fault for what, fault in verify(run)}
    assert set(faults.values()) == {None}
    assert {"00000005.safetensors", "00000010.safetensors", "model"} < set(faults)
    assert sum(what.startswith("journalled hash") for what in faults) == 3
    for path in (run / "model" / "model.safetensors", run / "snapshots" / "00000005.safetensors"):
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    result = CliRunner().invoke(app, ["verify", str(run)])
    assert result.exit_code == 1
    assert sorted(line.endswith(": ok") for line in result.stdout.splitlines()) == [
        False,
        False,
        True,
        True,
        True,
        True,
    ]


def test_the_command_line(task: Path, cut: Path, tmp_path: Path) -> None:
    def invoke(*words: object) -> Any:
        return CliRunner().invoke(app, [str(word) for word in words])

    assert isinstance(invoke("train").exception, UsageError)
    assert isinstance(invoke("train", "some_recipe", "--resume", cut).exception, UsageError)
    assert isinstance(invoke("train", "--resume", cut, "generations=12", "seed=3").exception, UsageError)
    assert invoke("train", "--resume", cut, "generations=12").exit_code == 0
    assert outcome(cut) == outcome(task / "straight")
    result = invoke("export", cut, tmp_path / "out", "--generation", 3)
    assert "generation 3" in result.output
    assert (tmp_path / "out" / "config.json").is_file()


def test_sigterm_ends_a_run_in_order(task: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "eggroll_rl", "train", str(task / "recipe.yaml"), "generations=100000"]
    process = subprocess.Popen(
        [*command, f"output_dir={run}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 120
    while not (run / "samples.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert f"eggroll-rl train --resume {run}" in output
    assert "Traceback" not in output
    generations = len(Journal(run / "journal.jsonl"))
    assert f"after {generations} generations" in output
    assert RunFolder(run).generations_logged() == generations


@pytest.mark.slow
@pytest.mark.parametrize(("option", "said"), [(("--kills", "4"), "4 kills"), (("--every", "61"), "repaired: 2 kills")])
def test_runs_that_are_killed_end_like_one_that_was_not(option: tuple[str, str], said: str) -> None:
    command = [sys.executable, "-m", "benchmarks.kill_test", *option]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert said in result.stdout


# A folder has one owner, and whoever is refused leaves everything as it was.


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_in_use_is_refused_before_a_model_loads(
    task: Path, cut: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(training, "build_engine", refuse)
    monkeypatch.setattr(grpo, "Policy", refuse)
    owner = f"belongs to process {os.getpid()} on .* since 20"
    with owned(cut), owned(tmp_path / "new"):
        before = contents(tmp_path)
        new = load_recipe(task / "recipe.yaml", [f"output_dir={tmp_path / 'new'}"])
        for attempt in (lambda: training.train(new), lambda: grpo.train(new), lambda: training.resume(cut)):
            with pytest.raises(UsageError, match=owner):
                attempt()
        assert contents(tmp_path) == before


def test_a_second_run_finds_what_the_first_has_made_since_it_looked(task: Path, tmp_path: Path) -> None:
    """The second has passed its checks; while it tried its rewards, the first began and ended."""
    recipe = load_recipe(task / "recipe.yaml", ["generations=1", f"output_dir={tmp_path / 'run'}"])
    prepared = training.prepared

    @contextmanager
    def slow(*arguments: Any) -> Iterator[Any]:
        with pytest.MonkeyPatch.context() as patch, prepared(*arguments) as context:
            patch.setattr(training, "prepared", prepared)
            training.train(recipe)
            yield context

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "prepared", slow)
        with pytest.raises(UsageError, match="exists and is never overwritten"):
            training.train(load_recipe(task / "recipe.yaml", ["seed=3", f"output_dir={tmp_path / 'run'}"]))
    assert load_recipe(tmp_path / "run" / "recipe.yaml") == recipe
    assert all(finding.fault is None for finding in verify(tmp_path / "run"))


@pytest.mark.parametrize("reason", ["data", "override", "base", "reward"])
def test_a_resume_that_is_refused_changes_nothing(task: Path, cut: Path, tmp_path: Path, reason: str) -> None:
    with (cut / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"kind": "update", "gen')  # torn
    files = {"data": task / "train.jsonl", "base": task / "base" / "model.safetensors", "reward": task / "reward.py"}
    before, kept = contents(cut), {path: path.read_bytes() for path in files.values()}
    overrides, message = (
        ["generations=20"],
        {
            "data": "the data of .*train.jsonl changed since this run began",
            "override": "generations",
            "base": "is not the model that this run began with",
            "reward": "no 'late' in",
        },
    )
    try:
        if reason == "data":
            files["data"].write_text('{"text": "another"}\n' * 4)
        elif reason == "override":
            overrides.append("generations=many")
        elif reason == "base":
            tensors = load_file(files["base"])
            save_file(tensors | {"lm_head.weight": tensors["lm_head.weight"] + 1}, files["base"], {"format": "pt"})
        else:
            files["reward"].write_text("def early(prompts, completions): ...")
        with pytest.raises(UsageError, match=message[reason]):
            training.resume(cut, overrides)
    finally:
        for path, content in kept.items():
            path.write_bytes(content)
    assert contents(cut) == before


@pytest.mark.parametrize("spoiled", ["recipe", "reward", "model"])
def test_a_run_that_never_began_leaves_no_folder(task: Path, tmp_path: Path, spoiled: str) -> None:
    base = tmp_path / "base"
    shutil.copytree(task / "base", base)
    changes = {"recipe": "fitness.best=99", "reward": "rewards=[{fn: 'absent.py:late'}]", "model": f"model={base}"}
    if spoiled == "model":
        os.truncate(base / "model.safetensors", 2000)
    with pytest.raises(Exception):  # noqa: B017  transformers has its own for a damaged file
        start(task, "unused", f"output_dir={tmp_path / 'runs' / 'one'}", changes[spoiled])
    assert not (tmp_path / "runs").exists()


# Complete means complete.


@pytest.mark.parametrize(
    "lost",
    ["model", "model/config.json", "model/model.safetensors", "metrics.jsonl", "half of metrics.jsonl",
     "end of metrics.jsonl", "samples.jsonl", "answers.jsonl", "report.html", "learning_curve.png", "recipe.yaml",
     "environment.json"],
)  # fmt: skip
def test_what_a_complete_run_lost_is_made_again(
    task: Path, tmp_path: Path, lost: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(task / "straight", tmp_path / "run"))
    path = run / lost.rpartition(" of ")[2]
    if path.is_dir():
        shutil.rmtree(path)
    elif lost.startswith("half"):
        os.truncate(path, path.stat().st_size // 2)
    elif lost.startswith("end"):
        os.truncate(path, path.stat().st_size - 2)
    else:
        path.unlink()
    training.resume(run)
    assert "what it lacks is made again" in capsys.readouterr().out
    assert outcome(run) == outcome(task / "straight")
    training.resume(run)
    assert "nothing is left" in capsys.readouterr().out


def test_the_end_is_written_last(task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(run: RunFolder) -> None:
        raise UsageError("no room for a page")

    with monkeypatch.context() as patch, pytest.raises(UsageError, match="no room for a page"):
        patch.setattr(training, "draw_run", full)
        start(task, "unused", f"output_dir={tmp_path / 'run'}")
    assert not RunFolder(tmp_path / "run").journal().is_complete
    training.resume(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(task / "straight")


# No number that is not finite.


BIG = """
def big(prompts, completions, **columns):
    return [1.7e308 if i % 3 else 1.0 for i in range(len(completions))]
"""


def test_rewards_near_the_largest_float_are_told_in_json(task: Path, tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text(BIG)
    start(task, "unused", f'rewards=[{{fn: "{tmp_path}/reward.py:big"}}]', f"output_dir={tmp_path / 'run'}")
    for file in ("metrics.jsonl", "journal.jsonl", "samples.jsonl"):
        for line in (tmp_path / "run" / file).read_text().splitlines():
            json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_a_step_that_loses_all_weights_leaves_the_generation_before(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In generation 3 the rate is too large for floats; the process may be killed before it takes the record back."""
    run, rate, retract = RunFolder(tmp_path / "run"), training.learning_rate, Journal.retract

    def wild(config: Any, generation: int, *rest: Any) -> float:
        return 1e38 if generation == 3 else rate(config, generation, *rest)

    def killed(journal: Journal) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "learning_rate", wild)
        patch.setattr(Journal, "retract", killed)
        with pytest.raises(KeyboardInterrupt):
            start(task, "unused", f"output_dir={run.path}")
        assert len(run.journal()) == 4
        patch.setattr(Journal, "retract", retract)
        for _ in range(2):  # in the replay, and in the generation itself
            assert run.generations_logged() == 3
            with pytest.raises(UsageError, match="generation 3: "):
                training.resume(run.path)
            assert len(run.journal()) == 3
    training.resume(run.path)
    assert outcome(run.path) == outcome(task / "straight")


# The same bits.


def test_a_resumed_run_has_the_batches_of_its_begin(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much memory is free then, and without a word of it in the recipe."""
    limits: list[int] = []
    rows = LocalEngine._rows

    def counted(engine: LocalEngine, length: int, sampling: Any) -> int:
        limits.append(rows(engine, length, sampling))
        return limits[-1]

    monkeypatch.setattr(LocalEngine, "_rows", counted)
    for free, generations in ((200_000, 2), (2**40, 4)):
        monkeypatch.setattr("eggroll_rl.engines.local.engine.usual_batch_bytes", lambda device, free=free: free)
        if generations == 2:
            settings = ["generations=2", "population.whitening=null", f"output_dir={tmp_path / 'run'}"]
            run = start(task, "unused", *settings)
        else:
            training.resume(run.path, ["generations=4"])
    assert run.journal().header.batch_bytes == 200_000
    assert len(limits) == 4 + 3  # generations and evaluations
    assert 1 <= min(limits) <= max(limits) < 64  # rows
    assert "batch_bytes: null" in run.recipe_file.read_text()
