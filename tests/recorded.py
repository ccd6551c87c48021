"""Short runs whose weights and metrics are kept in ``recorded.json``, so that a change of the code shows in them.

    python tests/recorded.py                 # record all of them anew, for this kind of processor
    python tests/recorded.py grpo            # only some
    .venv-vllm/bin/python tests/recorded.py vllm

The runs are on one thread. To the bit they are the same on one kind of processor with one release of torch; elsewhere
the first generations agree within a few answers.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("recorded.json")
TINY = [
    *("minutes=null", "evaluation={n: 16, every: 5}", "snapshots.every=4", "population.size=32"),
    "sampling.max_new_tokens=144",
]
SMALL = [*TINY, "data.prompts=4", "generations=4"]
LLAMA = ["model=embedded:llama-countdown", "engine.name=transformers"]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}

FIRST = 2  # generations in which processors differ little

Record = dict[str, Any]


def straight(*settings: str, method: str = "train", recipe: str = "countdown_tiny") -> Callable[[Path], None]:
    """A run from begin to end."""

    def run(folder: Path) -> None:
        assert _command(method, recipe, *settings, f"output_dir={folder}").wait() == 0, method

    return run


def cut(*settings: str) -> Callable[[Path], None]:
    """A run that is ended by a signal somewhere in its middle, and goes on."""

    def run(folder: Path) -> None:
        process = _command("train", "countdown_tiny", *settings, f"output_dir={folder}")
        while process.poll() is None and len(_lines(folder / "metrics.jsonl")) < 5:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGTERM
        assert _command("train", "--resume", str(folder)).wait() == 0

    return run


SEQUENCES: dict[str, Callable[[Path], None]] = {
    "countdown_tiny, seed 5": straight(*TINY, "seed=5", "generations=8"),
    "countdown_tiny, seed 11, cut": cut(*TINY, "seed=11", "generations=8"),
    "llama": straight(*SMALL, *LLAMA),
    "two replicas": straight(*SMALL, "engine.pool={replicas: 2, threads: 1, actor: {num_cpus: 0}}"),
    "grpo": straight(*SMALL, "generations=3", "grpo.prompts=4", "grpo.group=8", "grpo.lr=1.0e-4", method="grpo"),
}

IN_VLLM = "engine={name: vllm, vllm: {slots: 16, kv_cache_gib: 0.5}}"
VLLM = {"vllm": straight(*SMALL, IN_VLLM, recipe="countdown_tiny_vllm")}


def record(name: str) -> Record:
    """``weights``: SHA-256 of the tensors that a run has saved; ``metrics``: its records without what a clock says."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        (SEQUENCES | VLLM)[name](folder)
        records = [json.loads(line) for line in _lines(folder / "metrics.jsonl")]
        return {"weights": _hash(folder / "model"), "metrics": [_untimed(record) for record in records]}


def processor() -> str:
    """The kind of processor and the release of torch: where these are the same, every bit is."""
    import torch

    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").is_file() else []
    models = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    return f"{', '.join(sorted(models))}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def known() -> dict[str, dict[str, Record]]:
    """What is recorded: processor -> name -> record."""
    recorded: dict[str, dict[str, Record]] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
    return recorded


def keep(found: dict[str, Record]) -> None:
    """Add records of this processor to the file."""
    recorded = known()
    recorded[processor()] = recorded.get(processor(), {}) | found
    lines = json.dumps(recorded, indent=1, sort_keys=True)
    FILE.write_text(lines + "\n", encoding="utf-8")


def compare(name: str) -> None:
    """Run anew and assert that it is to the bit what was recorded on such a processor; elsewhere, nearly that."""
    found, recorded = record(name), known()
    here = recorded.get(processor(), {})
    if name in here:
        assert found == here[name]
    _assert_alike(found["metrics"], next(records[name] for records in recorded.values() if name in records)["metrics"])


def _assert_alike(found: list[Record], expected: list[Record]) -> None:
    """The same records in the same order; in the first generations rounding has turned only a few answers."""
    assert [(set(record), record["generation"]) for record in found] == [
        (set(record), record["generation"]) for record in expected
    ]
    for mine, other in zip(found, expected, strict=True):
        if "reward_mean" in mine and mine["generation"] < FIRST:
            assert abs(mine["reward_mean"] - other["reward_mean"]) < 0.05, mine
            assert abs(mine["tokens"] / other["tokens"] - 1) < 0.05, mine
        if mine["generation"] == 0 and "accuracy" in mine:
            assert abs(mine["accuracy"] - other["accuracy"]) < 0.1, mine


def _command(*words: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "eggroll_rl", *words]
    return subprocess.Popen(command, env=os.environ | ONE_THREAD, stdout=subprocess.DEVNULL)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def _untimed(record: Record) -> Record:
    return {key: value for key, value in record.items() if "second" not in key}


def _hash(folder: Path) -> str:
    """Of names, shapes and bytes, whatever the files' headers say."""
    from safetensors.numpy import load_file

    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        for name, tensor in sorted(load_file(path).items()):
            digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
            digest.update(tensor.tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    keep({name: record(name) for name in sys.argv[1:] or SEQUENCES})
