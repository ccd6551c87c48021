"""What a snapshot costs: the state is written once, a shard at a time, and read back so, with the same hash."""

import tempfile
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from eggroll_rl.engines.vllm import window
from eggroll_rl.es import tensors
from eggroll_rl.es.hashing import tensors_hash
from eggroll_rl.es.update import Update
from eggroll_rl.runs.journal.snapshots import Snapshot, Snapshots, load_snapshot

from .conftest import Engines, back_to_base
from .test_engine import WEIGHTS, population_of

SHARD = 2**15


def written() -> int:
    """Bytes that this process and its children have passed to ``write``."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(process.io_counters().write_chars for process in processes if process.status() != psutil.STATUS_ZOMBIE)


def refuse(*arguments: Any, **options: Any) -> None:
    raise AssertionError("a second copy is made")


def test_hash_snapshot_and_load_go_shard_by_shard(
    engines: Engines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (Update(population_of(engines, generation), WEIGHTS, lr=1e-3) for generation in range(2))
    engines.vllm.apply(first)
    model_hash, state_hash = engines.vllm.weights_hash(), tensors_hash(dict(engines.vllm.state_dict()))

    roomy, sizes, made = window.Window.roomy, [], []

    def measured(there: window.Window | None, nbytes: int) -> window.Window:
        found = roomy(there, nbytes)
        sizes.append(nbytes)
        made.append(len(found.bytes))
        return found

    monkeypatch.setattr(tensors, "SHARD", SHARD)
    monkeypatch.setattr(window.Window, "roomy", measured)
    monkeypatch.setattr("eggroll_rl.engines.vllm.engine.load_model", refuse)
    for name in ("mkdtemp", "mkstemp", "TemporaryFile"):
        monkeypatch.setattr(tempfile, name, refuse)

    assert engines.vllm.weights_hash() == model_hash
    snapshots, before = Snapshots(tmp_path, keep=1), written()
    snapshots.save(Snapshot.of(1, model_hash, engines.vllm.state_dict(), {"seen": torch.tensor(7)}))
    count, path = written() - before, snapshots.paths()[1]
    specs = engines.vllm.state_dict().specs
    total = sum(spec.nbytes for spec in specs.values())
    assert total < path.stat().st_size < total + 200 * len(specs)  # names and shapes
    assert path.stat().st_size <= count < 1.1 * path.stat().st_size + 2**18  # messages

    last = engines.vllm.apply(second), engines.vllm.weights_hash()
    assert last[1] != model_hash
    snapshot = load_snapshot(path)
    assert tensors_hash(snapshot.of_engine()) == state_hash
    engines.vllm.load_state_dict(snapshot.of_engine())
    assert engines.vllm.weights_hash() == model_hash
    assert tensors_hash(engines.vllm.state_dict()) == state_hash
    assert (engines.vllm.apply(second), engines.vllm.weights_hash()) == last
    assert len(sizes) > 2 * total / SHARD
    largest_row = max(spec.row_bytes for spec in specs.values())
    assert max(sizes) <= max(made) < max(SHARD, largest_row) + 8

    engines.transformers.load_state_dict(snapshot.of_engine())
    engines.transformers.apply(second)
    assert engines.transformers.weights_hash() == last[1]
    monkeypatch.undo()
    back_to_base(engines)
