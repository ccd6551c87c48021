"""Training over two processes of ``accelerate launch`` against training in one: the same rewards and weights."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from eggroll_rl.config import load_recipe
from eggroll_rl.runs.folder import RunFolder
from eggroll_rl.train import train

# Judged in one process: a reward that is not the same each time must not pull replicas apart.
REWARD = """
from pathlib import Path
import os

def spread(prompts, completions, **columns):
    with Path(__file__).with_suffix(os.environ["JUDGE"]).open("a") as file:
        file.write(f"{len(completions)}\\n")
    return [sum(map(ord, text)) % 17 for text in completions]
"""
LAUNCH = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"]  # gloo without GPUs


def launch(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "accelerate.commands.launch", *LAUNCH, "-m", "eggroll_rl", "train", *arguments]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=300
    )


def records(run: Path) -> list[dict[str, Any]]:
    """Metrics without times."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if "second" not in key} for line in lines]


@pytest.mark.slow
def test_two_processes_train_as_one_does(model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "mine.py").write_text(REWARD)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {
                "model": str(model_folder("llama")),
                "engine": {"device": "cpu"},
                "data": {"prompts": 3},
                "rewards": [{"fn": f"{tmp_path / 'mine.py'}:spread"}],
                "population": {"size": 10, "sigma": 0.05, "whitening": 0.1},  # five pairs are no two equal shares
                "optimizer": {"lr": 0.01},
                "sampling": {"max_new_tokens": 8},
                "evaluation": {"n": 5, "every": 2, "reward": f"{tmp_path / 'mine.py'}:spread"},
                "snapshots": {"every": 2},
                "generations": 3,
            }
        )
    )
    monkeypatch.setenv("JUDGE", ".one")
    train(load_recipe(recipe, [f"output_dir={tmp_path / 'one'}"]))
    done = launch(str(recipe), f"output_dir={tmp_path / 'two'}", JUDGE=".two")
    assert done.returncode == 0, done.stderr

    assert records(tmp_path / "two") == records(tmp_path / "one")
    assert records(tmp_path / "one")[1]["update_rms"] > 0
    with RunFolder(tmp_path / "one").journal() as one, RunFolder(tmp_path / "two").journal() as two:
        assert list(one.hashes) == [2, 3]  # of the snapshot, and at the end
        assert two.hashes == one.hashes
    for name in ("samples.jsonl", "model/model.safetensors"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    assert (tmp_path / "mine.two").read_text() == (tmp_path / "mine.one").read_text()

    again = launch(str(recipe), f"output_dir={tmp_path / 'two'}", JUDGE=".two")
    assert again.returncode != 0
    assert "exists and is never overwritten" in again.stderr


CLOSES = """
import os
import sys
from pathlib import Path

from eggroll_rl.config import load_recipe
from eggroll_rl.engines.build import build_engine, led_by_first_process
from eggroll_rl.engines.local.engine import LocalEngine
from eggroll_rl.es.population import Population


def close(engine, close=LocalEngine.close):
    close(engine)
    with Path(sys.argv[2], os.environ["RANK"]).open("a") as file:
        file.write(f"{engine.batch_bytes}\\n")


@led_by_first_process
def twice():
    recipe = load_recipe(sys.argv[1])
    for generation in range(2):
        with build_engine(recipe) as engine:
            answers = engine.generate(["a", "12"], recipe.sampling, Population(0, 0, recipe.population))
            Path(sys.argv[2], f"answers {generation}").write_text(str(answers))


LocalEngine.close = close
twice()
"""


def test_a_closed_engine_is_closed_in_every_process_and_another_begins(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """All processes have the batches of the first."""
    script, recipe = tmp_path / "twice.py", tmp_path / "recipe.yaml"
    script.write_text(CLOSES)
    values = {
        "model": str(model_folder("llama")),
        "engine": {"device": "cpu"},
        "rewards": [{"fn": "eggroll_rl.rewards.text:exact_match"}],
        "population": {"size": 6, "sigma": 0.05},
        "sampling": {"max_new_tokens": 4},
    }
    recipe.write_text(yaml.safe_dump(values))
    left = tmp_path / "left"
    left.mkdir()
    command = [sys.executable, "-m", "accelerate.commands.launch", *LAUNCH, str(script), str(recipe), str(left)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in left.iterdir()) == ["0", "1", "answers 0", "answers 1"]
    assert (left / "0").read_text() == (left / "1").read_text()
    assert len((left / "0").read_text().splitlines()) == 2
    assert (left / "answers 0").read_text() == (left / "answers 1").read_text()


WAITS = """
import time
from pathlib import Path

def slow(prompts, completions, **columns):
    if len(completions) > 5:  # the population's answers; not a probe or an evaluation
        Path(__file__).with_name("judging").touch()
        time.sleep(30)
    return [0.0] * len(completions)
"""


@pytest.mark.parametrize("frozen", ["first", "second"])
def test_the_others_end_where_one_process_is_frozen(
    frozen: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(WAITS)
    recipe = tmp_path / "recipe.yaml"
    values = {
        "model": str(model_folder("llama")),
        "engine": {"device": "cpu", "deadline": 3},
        "data": {"prompts": 3},
        "rewards": [{"fn": f"{tmp_path / 'mine.py'}:slow"}],
        "population": {"size": 10},
        "sampling": {"max_new_tokens": 2},
        "evaluation": {"n": 5, "reward": f"{tmp_path / 'mine.py'}:slow"},
        "output_dir": str(tmp_path / "run"),
    }
    recipe.write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "accelerate.commands.launch", *LAUNCH, "-m", "eggroll_rl", "train", str(recipe)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as launcher:
        stopped = {rank_of(child): child for child in processes_of(launcher, tmp_path / "judging")}[frozen]
        stopped.suspend()
        began = time.monotonic()
        assert launcher.stderr is not None
        line = next(line for line in launcher.stderr if "engine.deadline" in line)
        assert time.monotonic() - began < 20
        stopped.kill()  # which a launcher does after half a minute
        launcher.wait(60)
    assert ("the first process" in line) == (frozen == "first")
    assert launcher.returncode != 0


def processes_of(launcher: Any, judging: Path) -> list[psutil.Process]:
    """The trainers of a launch, once none of them is in a call: the first one's reward judges."""
    while not judging.is_file():
        assert launcher.poll() is None
        time.sleep(0.2)
    return [child for child in psutil.Process(launcher.pid).children() if "RANK" in child.environ()]


def rank_of(process: psutil.Process) -> str:
    return {"0": "first", "1": "second"}[process.environ()["RANK"]]
