"""Trackers, read back by their own readers: TensorBoard, W&B offline, Trackio in its local folder."""

import json
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from eggroll_rl.config import Recipe, load_recipe
from eggroll_rl.runs.folder import RunFolder
from eggroll_rl.runs.tracking import Trackers
from eggroll_rl.system.errors import UsageError

REWARD = {"fn": "mine.py:reward"}


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "wandb-cache"))
    yield


def recipe_with(*trackers: Any) -> Recipe:
    return Recipe.model_validate({"model": "m", "rewards": [REWARD], "trackers": trackers})


def record(generation: int) -> dict[str, Any]:
    """As in metrics.jsonl; generation 2 has no reward."""
    return {
        "generation": generation,
        "reward_mean": None if generation == 2 else generation / 8,
        "rewards": {"reward": generation / 8},
        "reward_failures": {"timeout": 0, "crash": generation},
        "update_rms": 1e-4,
    }


def evaluation(generation: int) -> dict[str, Any]:
    return {"generation": generation, "accuracy": generation / 16, "low": 0.0, "high": 1.0, "n": 4, "seconds": 1.5}


def log_run(recipe: Recipe, run: RunFolder, first: int, last: int) -> None:
    """Generations ``first`` to ``last`` of a run that goes on from ``first``."""
    run.path.mkdir(exist_ok=True)
    with Trackers(recipe, run) as trackers:
        trackers.start(first)
        for generation in range(first, last):
            trackers.log("eval", evaluation(generation))
            assert trackers.log("train", record(generation)) == record(generation)


def scalars(run: RunFolder) -> dict[str, list[tuple[int, float]]]:
    reader = EventAccumulator(str(run.path / "tensorboard"))
    reader.Reload()
    return {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def wandb_records(file: Path) -> Iterator[bytes]:
    """The records of a W&B offline file: LevelDB's log format after a header of seven bytes."""
    data, place, record = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:  # the end of a block is padded
            place += left
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        if place + 7 + size > len(data):  # it is still being written
            return
        record += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # full, last
            yield record
            record = b""


def wandb_history(file: Path) -> tuple[str, list[dict[str, Any]]]:
    """The run's id and its history rows in a W&B offline file, once the process that writes it has come to its end."""
    from wandb.proto.wandb_internal_pb2 import Record

    entries, end = [Record()], time.monotonic() + 30
    while not entries[-1].HasField("exit") and time.monotonic() < end:
        entries = [Record.FromString(data) for data in wandb_records(file)] or entries
    rows, identity = [], ""
    for entry in entries:
        identity = entry.run.run_id or identity
        items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in entry.history.item}
        rows += [items] if items else []
    return identity, rows


def test_a_tracker_is_named_or_described() -> None:
    plain, described = recipe_with("wandb", {"name": "wandb", "project": "p", "options": {"tags": ["a"]}}).trackers
    assert (plain.name, plain.project, plain.options) == ("wandb", "eggroll-rl", {})
    assert (described.project, described.options) == ("p", {"tags": ["a"]})
    recipe = load_recipe("countdown_tiny", ["trackers=[tensorboard, wandb]"])
    assert [tracker.name for tracker in recipe.trackers] == ["tensorboard", "wandb"]
    with pytest.raises(UsageError, match=r"trackers.0.name: Input should be 'tensorboard', 'wandb' or 'trackio'"):
        load_recipe("countdown_tiny", ["trackers=[tensorbord]"])


def test_without_trackers_nothing_is_written(tmp_path: Path) -> None:
    log_run(recipe_with(), RunFolder(tmp_path / "run"), 0, 2)
    assert not list((tmp_path / "run").iterdir())


def test_tensorboard_has_the_metrics(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    log_run(recipe_with("tensorboard"), run, 0, 4)
    found = scalars(run)
    assert found["train/reward_mean"] == [(0, 0.0), (1, 0.125), (3, 0.375)]
    assert found["train/reward_failures/crash"] == [(step, step) for step in range(4)]
    assert found["eval/accuracy"] == [(step, step / 16) for step in range(4)]
    assert "population.sigma: 0.001" in next((run.path / "tensorboard").rglob("hparams.yml")).read_text()


def test_a_resumed_run_goes_on_in_tensorboard_with_nothing_twice(tmp_path: Path) -> None:
    """The first process logged up to generation 4; its last snapshot is of 3."""
    run, recipe = RunFolder(tmp_path / "run"), recipe_with("tensorboard")
    log_run(recipe, run, 0, 5)
    log_run(recipe, run, 3, 6)
    found = scalars(run)
    assert found["train/update_rms"] == [(step, pytest.approx(1e-4)) for step in range(6)]
    assert found["eval/accuracy"] == [(step, step / 16) for step in range(6)]


def test_wandb_goes_on_in_the_same_run(tmp_path: Path) -> None:
    run, recipe = RunFolder(tmp_path / "run"), recipe_with({"name": "wandb", "project": "p"})
    log_run(recipe, run, 0, 3)
    log_run(recipe, run, 3, 5)
    histories = [wandb_history(file) for file in sorted((run.path / "wandb").glob("offline-run-*/*.wandb"))]
    identity = json.loads((run.path / "trackers.json").read_text())["id"]
    assert identity.startswith("run-")
    assert [name for name, _ in histories] == [identity] * len(histories)
    rows = [row for _, history in histories for row in history]
    assert [row["eval/accuracy"] for row in rows] == [step / 16 for step in range(5)]
    assert [row.get("train/reward_mean") for row in rows] == [0.0, 0.125, None, 0.375, 0.5]
    assert [row["train/rewards/reward"] for row in rows] == [step / 8 for step in range(5)]


def test_trackio_goes_on_in_the_same_run(tmp_path: Path) -> None:
    import trackio.utils

    options = {"auto_log_cpu": False, "auto_log_gpu": False}
    recipe = recipe_with({"name": "trackio", "project": tmp_path.name, "options": options})
    run = RunFolder(tmp_path / "run")
    log_run(recipe, run, 0, 2)
    log_run(recipe, run, 2, 4)
    identity = json.loads((run.path / "trackers.json").read_text())["id"]
    with sqlite3.connect(next(Path(trackio.utils.TRACKIO_DIR).glob(f"{tmp_path.name}*.db"))) as database:
        rows = database.execute("select run_name, step, metrics from metrics order by id").fetchall()
    accuracies = [
        (step, values["eval/accuracy"]) for _, step, text in rows if "eval/accuracy" in (values := json.loads(text))
    ]
    assert {name for name, *_ in rows} == {identity}
    assert accuracies == [(step, step / 16) for step in range(4)]


def test_a_tracker_that_is_not_installed_is_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import accelerate.tracking

    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [accelerate.tracking.LoggerType.TENSORBOARD])
    Trackers(recipe_with("tensorboard"), RunFolder(tmp_path))
    with pytest.raises(UsageError, match="tracker 'wandb' is not installed: pip install wandb, or take it out"):
        Trackers(recipe_with("tensorboard", "wandb"), RunFolder(tmp_path))


def test_a_tracker_that_does_not_start_is_told(tmp_path: Path) -> None:
    recipe = recipe_with("tensorboard", {"name": "wandb", "options": {"mode": "sideways"}})
    trackers = Trackers(recipe, RunFolder(tmp_path))
    with trackers, pytest.raises(UsageError, match=r"tracker 'wandb' does not start: .*; mend that, or take it out"):
        trackers.start()


class Failing:
    """A tracker whose service goes away after one record."""

    def __init__(self) -> None:
        self.logged = 0

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged += 1
        if self.logged > 1:
            raise ConnectionError("the service is away")

    def finish(self) -> None:
        raise ConnectionError("still away")


def test_a_tracker_that_fails_is_left_alone_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import eggroll_rl.runs.tracking as module

    broken, start = Failing(), module._started
    monkeypatch.setattr(
        module, "_started", lambda config, *rest: broken if config.name == "wandb" else start(config, *rest)
    )
    run = RunFolder(tmp_path / "run")
    with caplog.at_level(logging.WARNING):
        log_run(recipe_with("wandb", "tensorboard"), run, 0, 4)
    assert broken.logged == 2
    assert [message.getMessage() for message in caplog.records if message.name == module.__name__] == [
        "tracker wandb failed and is left alone; metrics.jsonl has everything: ConnectionError: the service is away"
    ]
    assert len(scalars(run)["eval/accuracy"]) == 4


def test_a_trained_run_has_its_metrics_in_tensorboard(tmp_path: Path, model_folder: Callable[[str], Path]) -> None:
    """Trained for two generations, then resumed for two more from before the last snapshot."""
    from eggroll_rl.train import resume, train

    values = {
        "model": str(model_folder("llama")),
        "data": {"prompts": 2},
        "rewards": [{"fn": "eggroll_rl.rewards.text:think_format"}],
        "population": {"size": 4, "sigma": 0.1},
        "sampling": {"max_new_tokens": 4},
        "evaluation": {"n": 2},
        "generations": 2,
        "trackers": ["tensorboard"],
        "output_dir": str(tmp_path / "run"),
    }
    run = train(Recipe.model_validate(values))
    resume(run.path, ["generations=4"])
    found, records = scalars(run), run.metrics()
    for group, name in (("train", "update_rms"), ("train", "tokens"), ("train", "lr"), ("eval", "accuracy")):
        logged = [(record["generation"], pytest.approx(record[name])) for record in records if name in record]
        assert found[f"{group}/{name}"] == logged
    assert len(found["train/update_rms"]) == 4
