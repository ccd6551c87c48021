"""The scripts of examples/, as they are started, at a small size."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pages import ROOT
from safetensors.torch import load_file

from eggroll_rl.runs.folder import RunFolder

pytestmark = pytest.mark.slow

EXAMPLES = ROOT / "examples"
SMALL = ["population.size=8", "data.prompts=2", "evaluation.n=4", "generations=2", "minutes=null", "engine.device=cpu"]
LAUNCH = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"]  # gloo without GPUs


def run(folder: Path, *command: str | Path, **environment: str) -> str:
    """What a command prints."""
    beside = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env={**os.environ, **beside, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_model_of_ones_own_learns(tmp_path: Path) -> None:
    said = run(tmp_path, sys.executable, EXAMPLES / "own_model.py", "--out", "run", "--generations", "20")
    first, last = (float(word) for word in said.splitlines()[-1].split() if word.startswith("0."))
    assert last > first + 0.05


def test_a_dataset_in_a_folder(tmp_path: Path, model_folder: Callable[[str], Path]) -> None:
    (tmp_path / "sums").mkdir()
    for split in ("train", "test"):
        rows = [{"question": f"{split} {n} + {n}?", "answer": f"#### {2 * n}"} for n in range(8)]
        (tmp_path / "sums" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = ["--generations", "2", "--members", "4", "--tokens", "4"]
    where = ["--model", model_folder("llama"), "--dataset", "sums", "--out", "run"]
    said = run(tmp_path, sys.executable, EXAMPLES / "hf_dataset.py", *where, *small)
    assert "held out: 0.0% before" in said
    with RunFolder(tmp_path / "run").journal() as journal:
        assert len(journal) == 2


def test_replicas_and_a_launch_end_with_the_weights_of_one_process(tmp_path: Path) -> None:
    script = EXAMPLES / "multi_gpu.py"
    ways = {
        "one": [sys.executable, script],
        "pool": [sys.executable, script, "--replicas", "2"],
        "launch": [sys.executable, "-m", "accelerate.commands.launch", *LAUNCH, script],
    }
    weights = {}
    for name, command in ways.items():
        run(tmp_path, *command, "countdown_tiny", *SMALL, f"output_dir={name}")
        weights[name] = load_file(tmp_path / name / "model" / "model.safetensors")
    for name in ("pool", "launch"):
        assert all(weights["one"][key].equal(weights[name][key]) for key in weights["one"])


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """A cluster of this machine alone, with two processes: what a job finds in its environment."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, script in {"srun": 'exec "$@"', "scontrol": "echo localhost"}.items():
        (tools / name).write_text(f"#!/bin/bash\n{script}\n")
        (tools / name).chmod(0o755)
    (tools / "torchrun").write_text(f'#!/bin/bash\nexec {sys.executable} -m torch.distributed.run "$@"\n')
    (tools / "torchrun").chmod(0o755)
    job = {"ID": str(os.getpid()), "NODELIST": "localhost", "NUM_NODES": "1"}  # the identity makes the port
    named = {f"SLURM_JOB_{name}": value for name, value in job.items()}
    return {**named, "SLURM_GPUS_ON_NODE": "2", "PATH": f"{tools}:{os.environ['PATH']}"}


def test_a_job_of_slurm_trains_and_goes_on_when_it_is_submitted_again(tmp_path: Path, slurm: dict[str, str]) -> None:
    script = EXAMPLES / "slurm.sbatch"
    assert shutil.which("bash")
    run(tmp_path, "bash", script, "job", "countdown_tiny", *SMALL, **slurm)
    weights = (tmp_path / "job" / "model" / "model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "job" / "model")
    run(tmp_path, "bash", script, "job", "countdown_tiny", **slurm)
    assert (tmp_path / "job" / "model" / "model.safetensors").read_bytes() == weights
