"""Kill a run again and again; what it ends with must be, to the bit, what a run that was never killed ends with.

    python -m benchmarks.kill_test --kills 30       # at random: any time, or in a random call of a function below
    python -m benchmarks.kill_test --every 1        # before each write, sync, rename, removal or truncation, one by one

Each attempt is a process of its own, ended by SIGKILL. Then the run goes on. The second way kills in a run from its
begin, in one that is resumed, in one that takes more generations, and in one whose model and metrics were lost.
"""

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import typer
from safetensors.torch import load_file

from benchmarks.tiny_task import outcome, write_task
from eggroll_rl import scoring, train
from eggroll_rl.config import Weights, load_recipe
from eggroll_rl.engines.local import decoding
from eggroll_rl.es import stored_float, stored_int8
from eggroll_rl.es.hashing import tensors_hash
from eggroll_rl.runs import answers
from eggroll_rl.runs.journal import snapshots
from eggroll_rl.system.command import run_command

Say = Callable[[str], object]

PHASES: dict[str, tuple[Any, str]] = {
    "an update": (stored_float.FloatParameter, "step"),
    "an update of int8": (stored_int8.Int8Parameter, "step"),
    "generation": (decoding.Sampler, "__call__"),
    "scoring": (scoring.Scorer, "_outputs"),
    "evaluation": (answers, "evaluate"),
}
WRITING = "a file operation"
ANY = "any moment"
OPERATIONS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")  # as Python's audit events are named
SHORT = ["generations=6", "population.size=8", "evaluation.every=4", "snapshots={every: 2, keep: 1}"]
MORE = "generations=8"


class Operations:
    """Counts what this process does to files below a folder, and kills it before the operation ``fatal`` (0: none).

    Attributes:
        done: every operation so far, as ``name file``.
    """

    def __init__(self, folder: Path, fatal: int):
        self.folder, self.fatal = str(folder), fatal
        self.done: list[str] = []
        self._write, self._sync, self._save = os.write, os.fsync, snapshots.write_hashed

    def watch(self) -> None:
        sys.addaudithook(self._hear)
        for owner, name, watched in (
            (os, "write", self._torn),
            (os, "fsync", self._synced),
            (snapshots, "write_hashed", self._half_saved),
        ):
            setattr(owner, name, watched)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        is_written = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if event in OPERATIONS or is_written:
            self._count(event, arguments[0])

    def _count(self, event: str, place: Any, before: Callable[[], object] = lambda: None) -> None:
        path = os.readlink(f"/proc/self/fd/{place}") if isinstance(place, int) else os.fspath(place)
        if not path.startswith(self.folder):
            return
        self.done.append(f"{event} {os.path.basename(path)}")
        if len(self.done) == self.fatal:
            before()
            os.kill(os.getpid(), signal.SIGKILL)

    def _torn(self, descriptor: int, data: Any) -> int:
        self._count("os.write", descriptor, lambda: self._write(descriptor, data[: len(data) // 2]))
        return self._write(descriptor, data)

    def _synced(self, descriptor: int) -> None:
        self._count("os.fsync", descriptor)
        self._sync(descriptor)

    def _half_saved(self, path: Path, **what: Any) -> None:
        self._save(path, **what)
        self._count("save", path, lambda: os.truncate(path, path.stat().st_size // 2))


class Scenario(NamedTuple):
    """A run in which to kill: what is in its folder before, and with which overrides it is resumed."""

    name: str
    prepare: Callable[[Path], object]
    overrides: tuple[str, ...] = ()


def kill_at_every(folder: Path, stride: int, engine: str, weights: Weights, say: Say) -> list[str]:
    """Kill before every ``stride``-th operation of each scenario; returns what differs at the end."""
    _process(write_task, folder, engine, weights).join()
    whole, cut = folder / "whole", folder / "cut"
    _go(folder, whole)
    middle = next(n for n, name in enumerate(_done(folder), 1) if name == "os.mkdir snapshots") + 20
    _go(folder, cut, fatal=middle)

    def lose(run: Path) -> None:
        shutil.copytree(whole, run)
        shutil.rmtree(run / "model")
        (run / "metrics.jsonl").unlink()

    differing = []
    for scenario in (
        Scenario("begun", lambda run: None),
        Scenario("resumed", lambda run: shutil.copytree(cut, run)),
        Scenario("given more", lambda run: shutil.copytree(whole, run), (MORE,)),
        Scenario("repaired", lose),
    ):
        run = folder / "run"
        scenario.prepare(run)
        _go(folder, run, *scenario.overrides)
        expected, operations = outcome(run), _done(folder)
        shutil.rmtree(run)
        for fatal in range(1, len(operations) + 1, stride):
            scenario.prepare(run)
            _go(folder, run, *scenario.overrides, fatal=fatal)
            _go(folder, run, *scenario.overrides)
            found = outcome(run)
            changed = [key for key in expected | found if expected.get(key) != found.get(key)]
            differing += [f"{scenario.name}, killed before {operations[fatal - 1]} ({fatal}): {key}" for key in changed]
            shutil.rmtree(run)
        say(f"{scenario.name}: {len(range(0, len(operations), stride))} kills in {len(operations)} operations")
    return differing


def kill_at_random(folder: Path, kills: int, seed: int, engine: str, weights: Weights, say: Say) -> list[str]:
    """Kill so many times; returns what differs, of every run that came to its end."""
    rng = random.Random(seed)
    _process(write_task, folder, engine, weights).join()
    began = time.time()
    _expect(_process(_attempt, folder, folder / "never killed", [], [], None, 0), 0, folder)
    startup, total = (folder / "never killed" / "recipe.yaml").stat().st_mtime - began, time.time() - began
    expected = outcome(folder / "never killed")
    assert expected["model/model.safetensors"] != tensors_hash(load_file(folder / "base" / "model.safetensors"))
    calls = json.loads((folder / "calls.json").read_text())
    say(f"a run takes {total:.1f} s, {startup:.1f} s of these before it begins; calls: {calls}")

    reach = min(1.0, 3 / kills)  # share of a run in which an attempt is killed, so that all kills find their place
    differing, killed, runs = [], Counter[str](), 1
    phases = cycle([ANY, WRITING, *(phase for phase in PHASES if phase in calls)])
    while True:
        name = f"run {runs}"
        phase = next(phases) if killed.total() < kills else None
        call = rng.randint(1, max(1, round(reach * calls[phase]))) if phase in calls else 0
        process = _process(_attempt, folder, folder / name, [], [], phase, call)
        if phase == ANY:
            process.join(rng.uniform(0.0, startup + reach * (total - startup)))
            process.kill()
        if _expect(process, -signal.SIGKILL if phase else 0, folder) != 0:
            killed[str(phase)] += 1
            continue
        found = outcome(folder / name)
        differing += [f"{name}: {key}" for key in expected | found if expected.get(key) != found.get(key)]
        if killed.total() == kills:
            break
        runs += 1
    say(f"{killed.total()} kills in {runs} runs: " + ", ".join(f"{n} in {phase}" for phase, n in killed.items()))
    return differing


def _process(target: Callable[..., object], *args: object) -> Any:
    """A running copy of this process, whose imports are done and whose threads have not begun."""
    process = multiprocessing.get_context("fork").Process(target=target, args=args)
    process.start()
    return process


def _expect(process: Any, code: int, folder: Path) -> int:
    process.join()
    if process.exitcode not in (0, code):
        raise RuntimeError(f"exit code {process.exitcode}: " + (folder / "log.txt").read_text()[-3000:])
    return int(process.exitcode)


def _go(folder: Path, run: Path, *overrides: str, fatal: int = 0) -> None:
    """Train a short run in ``run``, or go on there; be killed before the operation ``fatal``."""
    process = _process(_attempt, folder, run, SHORT, list(overrides), WRITING, fatal)
    assert _expect(process, -signal.SIGKILL, folder) == (-signal.SIGKILL if fatal else 0), "the other end was expected"


def _done(folder: Path) -> list[str]:
    operations: list[str] = json.loads((folder / "operations.json").read_text())
    return operations


def _attempt(folder: Path, run: Path, settings: list[str], changes: list[str], phase: str | None, call: int) -> None:
    """Train or go on, and be killed in the given call of a phase."""
    with (folder / "log.txt").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    calls = Counter[str]()
    for watched, (owner, function) in PHASES.items():
        setattr(owner, function, _watched(watched, getattr(owner, function), calls, call if watched == phase else 0))
    operations = Operations(run, call if phase == WRITING else 0)
    operations.watch()
    if (run / "journal.jsonl").exists():
        train.resume(run, changes)
    else:
        train.train(load_recipe(folder / "recipe.yaml", [*settings, *changes, f"output_dir={run}"]))
    (folder / "operations.json").write_text(json.dumps(operations.done))
    (folder / "calls.json").write_text(json.dumps(calls | {WRITING: len(operations.done)}))


def _watched(phase: str, original: Callable[..., Any], calls: Counter[str], fatal: int) -> Callable[..., Any]:
    def function(*args: Any, **kwargs: Any) -> Any:
        calls[phase] += 1
        if calls[phase] == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    return function


def main(
    kills: Annotated[int, typer.Option(min=1)] = 30,
    every: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="kill before each N-th file operation instead")
    ] = None,
    seed: int = 0,
    engine: Literal["transformers", "rwkv"] = "transformers",
    weights: Weights = "float",
) -> None:
    """Kill a run again and again, and compare what it ends with to a run that was never killed."""
    with tempfile.TemporaryDirectory() as folder:
        if every:
            differing = kill_at_every(Path(folder), every, engine, weights, typer.echo)
        else:
            differing = kill_at_random(Path(folder), kills, seed, engine, weights, typer.echo)
    typer.echo("all runs ended alike" if not differing else f"DIFFERENT: {', '.join(differing)}")
    raise typer.Exit(int(bool(differing)))


if __name__ == "__main__":
    run_command(main)
