"""A run of the shipped recipe whose engine process is killed: it goes on, and replays without vLLM."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import psutil
import pytest

from eggroll_rl.config import load_recipe
from eggroll_rl.engines.build import build_replay_engine
from eggroll_rl.engines.local.engine import LocalEngine
from eggroll_rl.engines.vllm.engine import VLLMEngine
from eggroll_rl.runs.rebuild import verify
from eggroll_rl.system.errors import UsageError

from .conftest import recipe_of

SMALL = [
    "generations=6",
    "minutes=null",
    "population.size=8",
    "data.prompts=2",
    "evaluation={n: 8}",
    "snapshots.every=2",
    "engine.vllm={slots: 4, kv_cache_gib: 0.5}",
]
COMMAND = [sys.executable, "-m", "eggroll_rl", "train"]


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.is_file() else 0


@pytest.mark.parametrize(("error", "seconds"), [(Exception, 0.3), (ValueError, 0.3), (Exception, 60.0)])
def test_a_call_that_fails_while_the_engine_dies_says_that_it_died(
    error: type[Exception], seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM raises a plain ``Exception`` where a worker was killed, and ends its engine process after that."""
    monkeypatch.setattr("eggroll_rl.engines.vllm.start.ENDING", 2.0)
    process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(seconds,))
    process.start()
    core = SimpleNamespace(resources=SimpleNamespace(engine_manager=SimpleNamespace(processes=[process])))
    engine = object.__new__(VLLMEngine)
    engine.recipe = recipe_of("embedded:llama-countdown")
    engine.llm = Mock(llm_engine=SimpleNamespace(engine_core=core))
    engine.llm.collective_rpc.side_effect = error("Call to collective_rpc method failed: cancelled")
    died = error is Exception and seconds < 1
    try:
        with pytest.raises(UsageError if died else error, match="vLLM's processes died" if died else "cancelled"):
            engine._call("eggroll_save")
    finally:
        process.kill()


def test_a_run_survives_its_engine(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ["countdown_tiny_vllm", f"output_dir={folder}", *SMALL, "generations=100000"]
    run = subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    deadline = time.monotonic() + 300
    while lines(folder / "metrics.jsonl") < 4 and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    children = psutil.Process(run.pid).children(recursive=True)
    workers = [process.pid for process in children if "Worker" in " ".join(process.cmdline())]
    os.kill(workers[0], signal.SIGKILL)
    _, messages = run.communicate(timeout=100)
    assert run.returncode == 2
    last = [line for line in messages.splitlines() if line.startswith("error: ")]
    assert len(last) == 1
    assert f"eggroll-rl train --resume {folder}" in last[0]

    kept = lines(folder / "journal.jsonl")
    generations = lines(folder / "metrics.jsonl") + 2
    subprocess.run([*COMMAND, "--resume", str(folder), f"generations={generations}"], cwd=tmp_path, check=True)
    assert lines(folder / "journal.jsonl") > kept
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["generation"] for record in records if "reward_mean" in record] == list(range(generations))

    assert isinstance(build_replay_engine(load_recipe(folder / "recipe.yaml")), LocalEngine)
    findings = list(verify(folder))
    assert len(findings) >= 4
    assert not [finding for finding in findings if finding.fault is not None]


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("generations", [None, 2], ids=["while it starts", "while it trains"])
def test_nothing_outlives_a_run_that_is_killed(tmp_path: Path, generations: int | None) -> None:
    folder = tmp_path / "run"
    arguments = ["countdown_tiny_vllm", f"output_dir={folder}", *SMALL, "generations=100000"]
    run = psutil.Popen([*COMMAND, *arguments], stderr=subprocess.DEVNULL, cwd=tmp_path)
    deadline = time.monotonic() + 300
    while run.poll() is None and time.monotonic() < deadline:
        started = any("Worker" in child.name() for child in run.children(recursive=True))
        if lines(folder / "metrics.jsonl") >= generations if generations else started:
            break
        time.sleep(0.05)
    children = run.children(recursive=True)
    assert children
    run.kill()
    run.wait()
    deadline = time.monotonic() + 60
    while (left := [child for child in children if is_alive(child)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    for child in left:
        child.kill()
    assert not left
