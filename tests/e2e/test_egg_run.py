"""A recipe on text, in one run and in many pieces, threads and processes: the same weights, to the bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import yaml
from cut_runs import interrupted_at

from eggroll_rl.config import Recipe, load_recipe
from eggroll_rl.engines.egg import EggEngine
from eggroll_rl.models.loading import load_model
from eggroll_rl.runs.folder import RunFolder
from eggroll_rl.runs.journal.snapshots import Snapshots, load_snapshot
from eggroll_rl.runs.rebuild import export, verify
from eggroll_rl.runs.text import Text
from eggroll_rl.train import resume, train

BY_TORCH = '''
from eggroll_rl.engines.egg import EggEngine
from eggroll_rl.models.egg.learner import torch_kernel


class TorchEgg(EggEngine):
    """Computes by what runs on any device of torch, here on the CPU."""

    def __init__(self, model, tokenizer, seed, shift):
        super().__init__(model, tokenizer, seed, shift, torch_kernel(model))
'''
LINES = [
    f"The {a} {b} the {c}, and the {c} sleeps on.\n" for a in "xyz" for b in ("saw", "fed") for c in ("dog", "cat")
]
LAUNCH = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"]  # gloo without GPUs


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe of eleven generations, and a run of it that nothing cut short."""
    folder = tmp_path_factory.mktemp("egg")
    texts = folder / "texts"
    texts.mkdir()
    for number in range(8):
        (texts / f"{number}.txt").write_text("".join(random.Random(number).choices(LINES, k=9)))
    values = {
        "model": "egg:16x2",
        "engine": {"name": "egg"},
        "text": {"name": str(texts), "group": 4, "tokens": 20, "sample": 12},
        "population": {"size": 40, "sigma": 0.0625},
        "fitness": {"shaping": "sign"},
        "optimizer": {"name": "votes"},
        "evaluation": {"n": 6, "every": 4},
        "snapshots": {"every": 3},
        "generations": 11,
        "seed": 5,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    train(recipe_for(folder, folder / "whole"))
    return folder


def recipe_for(task: Path, run: Path, *overrides: str) -> Recipe:
    return load_recipe(task / "recipe.yaml", [f"output_dir={run}", *overrides])


def outcome(path: Path) -> dict[str, Any]:
    """All that a run ends with, but for the time that it took."""
    run = RunFolder(path)
    with run.journal() as journal:
        weights = [entry.update.weights for entry in journal.entries()]
        hashes, complete = dict(journal.hashes), journal.is_complete
    records = [{key: value for key, value in record.items() if "second" not in key} for record in run.metrics()]
    state = load_snapshot(list(Snapshots(run.snapshots, 1).paths().values())[-1]).state
    return {
        "weights": weights,
        "hashes": hashes,
        "complete": complete,
        "records": records,
        "answers": run.answers(),
        "state": {name: tensor.tolist() for name, tensor in state.items()},
        "model": (run.model / "model.safetensors").read_bytes(),
    }


def test_it_learns_and_its_members_read_on(task: Path) -> None:
    found = outcome(task / "whole")
    bits = [record["bits_per_byte"] for record in found["records"] if "lr" not in record]
    assert bits[-1] < bits[0] - 0.5
    assert len(set(found["weights"])) == 11
    assert sorted(found["hashes"]) == [3, 6, 9, 11]
    assert torch.tensor(found["state"]["objective.state"]).unique(dim=0).shape[0] == 40  # each member's own


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads(task: Path, tmp_path: Path, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        train(recipe_for(task, tmp_path / "run"))
    finally:
        torch.set_num_threads(before)
    assert outcome(tmp_path / "run") == outcome(task / "whole")


@pytest.mark.parametrize(
    ("owner", "method", "call"),
    [
        *((EggEngine, "read", call) for call in (1, 2, 6, 9)),
        *((EggEngine, "apply", call) for call in (1, 4, 7)),
        (Text, "measure", 3),
        (Snapshots, "save", 2),
        (RunFolder, "save_model", 1),
    ],
)
def test_a_run_that_was_cut_short_ends_as_if_it_had_not(
    task: Path, tmp_path: Path, owner: Any, method: str, call: int
) -> None:
    whole, calls = getattr(owner, method), 0

    def cut(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, method, cut)
        train(recipe_for(task, tmp_path / "run"))
    resume(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(task / "whole")


@pytest.mark.slow
def test_killed_at_random_moments(task: Path, tmp_path: Path) -> None:
    run, longer = tmp_path / "run", ("generations=400", "evaluation.every=100")
    train(recipe_for(task, tmp_path / "straight", *longer))
    arguments = [str(task / "recipe.yaml"), f"output_dir={run}", *longer]
    chance = random.Random(1)
    for _ in range(3):
        command = [sys.executable, "-m", "eggroll_rl", "train", *arguments]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
            before = size_of(run)
            while size_of(run) == before and process.poll() is None:
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.4))
            process.send_signal(signal.SIGKILL)
        arguments = ["--resume", str(run)]
    resume(run)
    assert outcome(run) == outcome(tmp_path / "straight")


def size_of(run: Path) -> int:
    journal = run / "journal.jsonl"
    return journal.stat().st_size if journal.is_file() else 0


@pytest.fixture(scope="module")
def by_torch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of an engine that computes by torch, found in an installed package, in the actors of Ray too."""
    site = tmp_path_factory.mktemp("site")
    info = site / "torch_egg-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch-egg\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[eggroll_rl.engines]\ntorch-egg = torch_egg:TorchEgg\n")
    (site / "torch_egg.py").write_text(BY_TORCH)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
        yield "torch-egg"


@pytest.fixture(scope="module")
def cluster(by_torch: str) -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.parametrize("pool", ["{replicas: 1}", "{replicas: 2, chunk: 6, threads: 2}"])
def test_replicas_of_a_pool(task: Path, tmp_path: Path, cluster: None, pool: str) -> None:
    train(recipe_for(task, tmp_path / "run", f"engine.pool={pool}"))
    assert outcome(tmp_path / "run") == outcome(task / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["null", "{replicas: 2, chunk: 6}"])
def test_by_torch_and_cut_short_and_gone_on_with_by_the_c_kernel(
    task: Path, tmp_path: Path, cluster: None, by_torch: str, pool: str
) -> None:
    run, whole = tmp_path / "run", outcome(task / "whole")
    train(recipe_for(task, run, f"engine.name={by_torch}", f"engine.pool={pool}"))
    assert outcome(run) == whole
    assert [finding.fault for finding in verify(run)] == [None] * 7
    with interrupted_at(6, Text, "judge"):
        train(recipe_for(task, tmp_path / "cut", f"engine.name={by_torch}", f"engine.pool={pool}"))
    with EggEngine.from_recipe(recipe_for(task, run)) as engine:
        resume(tmp_path / "cut", engine=engine)
    assert outcome(tmp_path / "cut") == whole


@pytest.mark.slow
def test_a_pool_goes_on_where_it_was_cut_short(task: Path, tmp_path: Path, cluster: None) -> None:
    with interrupted_at(6, Text, "judge"):
        train(recipe_for(task, tmp_path / "run", "engine.pool={replicas: 2}"))
    resume(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(task / "whole")


@pytest.mark.slow
def test_two_processes_of_a_launcher(task: Path, tmp_path: Path) -> None:
    arguments = ["-m", "eggroll_rl", "train", str(task / "recipe.yaml"), f"output_dir={tmp_path / 'run'}"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *LAUNCH, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert outcome(tmp_path / "run") == outcome(task / "whole")


def test_any_generation_is_made_again_from_signs_alone(task: Path, tmp_path: Path) -> None:
    assert [finding.fault for finding in verify(task / "whole")] == [None] * 7
    export(task / "whole", tmp_path / "seventh", 7)
    train(recipe_for(task, tmp_path / "run", "generations=7"))
    seventh, model = load_model(str(tmp_path / "seventh"))[0], load_model(str(tmp_path / "run"))[0]
    assert {name: p.tolist() for name, p in seventh.named_parameters()} == {
        name: p.tolist() for name, p in model.named_parameters()
    }
    with (task / "whole" / "journal.jsonl").open() as lines:
        updates = [record for record in map(json.loads, lines) if record["kind"] == "update"]
    assert all(len(record["weights"]) <= 20 / 4 + 2 for record in updates)  # two bits for each of 20 pairs


def test_a_model_goes_on_learning_in_another_run(task: Path, tmp_path: Path) -> None:
    run = train(recipe_for(task, tmp_path / "run", f"model={task / 'whole'}", "generations=1"))
    ended = [record for record in RunFolder(task / "whole").metrics() if "lr" not in record][-1]
    began = run.metrics()[0]
    assert began["bits_per_byte"] == ended["bits_per_byte"]


def test_the_page_of_a_run(task: Path) -> None:
    page = (task / "whole" / "report.html").read_text()
    marks = [record for record in RunFolder(task / "whole").metrics() if "lr" not in record]
    assert f"{marks[0]['bits_per_byte']:.2f} to {marks[-1]['bits_per_byte']:.2f} bits per byte in 11" in page
    yardsticks = marks[-1]["yardsticks"]
    assert all(f"{name} {bits:.2f}" in page and f">{name}<" in page for name, bits in yardsticks.items())
    assert {"emb", "layers.1.W2", "ln_out"} <= marks[-1]["saturation"]["weights"].keys()
    assert {"head", "layers.1.W2"} <= marks[-1]["saturation"]["products"].keys()
    assert all(f"<th>{name}</th>" in page for name in ("emb", "head", "ln_out", "Wf", "ln2"))
    for heading in ("Against updates", "Against training time", "Weights moved", "Saturation", "Text before and after"):
        assert heading in page
    made_up = [answer["completion"] for answer in RunFolder(task / "whole").answers()]
    assert len(made_up) == len(marks) == 4
    assert made_up[0] != made_up[-1]
    assert str(task / "texts") in page  # which text it was
