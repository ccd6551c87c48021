"""Runs that are cut short; and a tiny task with two runs of it: one that was never cut, and one that a signal cut."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from benchmarks.tiny_task import write_task
from eggroll_rl import train as training
from eggroll_rl.config import load_recipe
from eggroll_rl.es.hashing import tensors_hash
from eggroll_rl.runs.folder import RunFolder
from eggroll_rl.runs.journal import Entry
from eggroll_rl.system.interrupts import Interrupted

GENERATIONS = 12
CUT = 8  # generations that the cut run has: a snapshot at 5, an evaluation at 7


def start(task: Path, name: str, *overrides: str) -> RunFolder:
    settings = [f"generations={GENERATIONS}", f"output_dir={task / name}", *overrides]
    return training.train(load_recipe(task / "recipe.yaml", settings))


def weights(folder: Path) -> str:
    return tensors_hash(load_file(folder / "model.safetensors"))


def write_cut_task(folder: Path, *kind: str) -> Path:
    """Write a task of this kind (see ``write_task``) and run it whole (``straight``) and in part (``cut``)."""
    write_task(folder, *kind)
    start(folder, "straight")
    entry_of = training.entry_of

    def interrupted(*args: Any) -> Entry:
        if args[0].population.generation == CUT:
            signal.raise_signal(signal.SIGTERM)
        return entry_of(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "entry_of", interrupted)
        with pytest.raises(Interrupted):
            start(folder, "cut")
    return folder


@contextmanager
def interrupted_at(call: int, owner: type, method: str) -> Iterator[None]:
    """A block that Ctrl-C ends, in place of the so-many-th call of a class's method."""
    usual, calls = getattr(owner, method), count(1)

    def cut(*args: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return usual(*args)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, method, cut)
        yield
