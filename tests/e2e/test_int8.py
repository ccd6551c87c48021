"""A run whose weights are int8: cut short and resumed, verified, exported, and what without error feedback stalls."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from cut_runs import start, weights, write_cut_task
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from benchmarks.int8_weights import app as int8_weights
from benchmarks.tiny_task import outcome, write_task
from eggroll_rl import train as training
from eggroll_rl.cli import app
from eggroll_rl.eval.evaluate import evaluate_model
from eggroll_rl.models.loading import load_model
from eggroll_rl.runs.folder import RunFolder
from eggroll_rl.runs.rebuild import export, verify
from eggroll_rl.system.errors import UsageError


@pytest.fixture(scope="module", params=["transformers", "rwkv"])
def task(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny task, with a run that was never cut (``straight``) and one that was by a signal (``cut``)."""
    return write_cut_task(tmp_path_factory.mktemp("task"), request.param, "int8")


@pytest.mark.parametrize("lost", ["nothing", "snapshots"])
def test_a_resumed_run_is_the_run_that_was_never_cut(task: Path, tmp_path: Path, lost: str) -> None:
    cut = Path(shutil.copytree(task / "cut", tmp_path / "run"))
    if lost == "snapshots":
        shutil.rmtree(cut / "snapshots")
    training.resume(cut)
    assert outcome(cut) == outcome(task / "straight")


def test_a_run_is_verified_and_a_change_of_one_weight_is_found(task: Path, tmp_path: Path) -> None:
    assert [finding.fault for finding in verify(task / "straight")] == [None] * 6
    run = Path(shutil.copytree(task / "straight", tmp_path / "run"))
    path = run / "model" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert [finding.fault for finding in verify(run)].count(None) == 5


def test_the_weights_are_int8_and_moved(task: Path) -> None:
    trained, base = (load_file(path / "model.safetensors") for path in (task / "straight" / "model", task / "base"))
    name = next(name for name, tensor in trained.items() if tensor.dtype == torch.int8 and len(tensor) > 8)
    rounded = (base[name] / trained[f"{name}_scale"]).round()
    assert (trained[name] != rounded).any()
    assert trained[f"{name}_scale"].shape == (len(rounded), 1)


def test_exports_are_the_trained_model(task: Path, tmp_path: Path) -> None:
    run = task / "straight"
    assert export(run, tmp_path / "int8") == 12
    assert weights(tmp_path / "int8") == weights(run / "model")
    export(run, tmp_path / "served", weights="w8a8")
    assert weights(tmp_path / "served") == weights(run / "model")
    done = CliRunner().invoke(app, ["export", str(run), str(tmp_path / "float"), "--weights", "float"])
    assert done.exit_code == 0, done.output
    int8, tokenizer = load_model(str(run / "model"), weights="int8")
    floats = AutoModelForCausalLM.from_pretrained(tmp_path / "float")
    assert floats.dtype == torch.float32
    ids = AutoTokenizer.from_pretrained(tmp_path / "float")("three four", return_tensors="pt").input_ids
    assert tokenizer("three four").input_ids == ids[0].tolist()
    with torch.no_grad():
        given, expected = (model(input_ids=ids).logits for model in (int8, floats))
    torch.testing.assert_close(given, expected, rtol=2e-3, atol=2e-3)


def test_what_cannot_be_exported_is_refused(task: Path, tmp_path: Path) -> None:
    start(task, "floats", "weights=float", "generations=1")
    for run, out in ((task / "floats", tmp_path / "int8"), (task / "straight", tmp_path / "model.pth")):
        with pytest.raises(UsageError, match=r"int8 weights are not to be had of|is none; name a folder"):
            export(run, out, weights="int8")


def test_a_run_is_evaluated_as_it_was_trained(task: Path) -> None:
    result = evaluate_model(str(task / "straight"), n=4)
    records = RunFolder(task / "straight").journal().evaluations
    assert result["accuracy"] == records[12]["accuracy"]


def test_without_error_feedback_nearly_all_weights_stay(tmp_path: Path) -> None:
    write_task(tmp_path, weights="int8")
    for feeds in (True, False):
        rule = f"optimizer={{name: adam, lr: 2.0e-4, error_feedback: {feeds}}}"
        start(tmp_path, f"run{feeds}", rule, "generations=40", "evaluation.every=0")
    parts = {feeds: load_file(tmp_path / f"run{feeds}" / "model" / "model.safetensors") for feeds in (True, False)}
    export(tmp_path / "runTrue", tmp_path / "start", 0)
    base = load_file(tmp_path / "start" / "model.safetensors")
    moved = {feeds: sum(int((parts[feeds][name] != base[name]).sum()) for name in base) for feeds in parts}
    assert moved[True] > 100
    assert moved[False] < moved[True] / 20


@pytest.mark.slow
def test_the_benchmark_of_learning_trains_three_ways(tmp_path: Path) -> None:
    small = ["generations=2", "population.size=16", "evaluation={n: 8}", "sampling.max_new_tokens=48"]
    settings = [part for setting in small for part in ("--set", setting)]
    done = CliRunner().invoke(int8_weights, ["learning", str(tmp_path), "--seeds", "3", *settings])
    assert done.exit_code == 0, done.output
    moved = dict(re.findall(r"(float|int8[a-z ]*), seed 3: .* layers moved by ([\d.]+)%", done.stdout))
    assert list(moved) == ["float", "int8", "int8 without error feedback"]
    assert all(0.1 < float(percent) < 10 for percent in moved.values())
