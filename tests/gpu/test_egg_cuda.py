"""EGG's population on a CUDA device against the C kernel, bit for bit. Not collected by default: ``make test-gpu``."""

from pathlib import Path
from typing import Any

import pytest
import torch
from cut_runs import interrupted_at

from eggroll_rl.config import load_recipe
from eggroll_rl.engines.egg import EggEngine
from eggroll_rl.es.integers import least_votes, pair_fitness
from eggroll_rl.models.egg.device import DeviceEgg, int8_product
from eggroll_rl.models.egg.kernel import Draw, EggKernel
from eggroll_rl.models.egg.model import EggConfig, new_model
from eggroll_rl.runs.folder import RunFolder
from eggroll_rl.train import resume, train

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("shape", [(1, 4, 4), (17, 16, 24), (64, 1024, 256), (70, 3, 5)])
def test_products_of_the_outermost_numbers(shape: tuple[int, int, int]) -> None:
    M, I, O = shape  # noqa: E741
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randint(-127, 128, (rows, I), generator=generator).to(torch.int8) for rows in (M, O))
    x[0], w[0] = 127, -127
    assert torch.equal(int8_product(x.cuda(), w.cuda()).cpu(), x.int() @ w.int().T)


@pytest.mark.parametrize(("width", "layers", "members"), [(4, 2, 6), (16, 3, 70), (64, 2, 300), (256, 1, 66)])
def test_generations_are_those_of_the_c_kernel(
    width: int, layers: int, members: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eggroll_rl.models.egg.device._MEMBERS", 64)
    model = new_model(EggConfig(width, layers), 0)
    on_cpu = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    kernel = EggKernel(on_cpu, width, layers)
    device = DeviceEgg({name: weight.detach().cuda() for name, weight in model.named_parameters()}, layers)
    states = model.new_state(members), model.new_state(members).cuda()
    generator = torch.Generator().manual_seed(1)
    for generation in range(3):
        draw = Draw(2**64 - 1, generation, 4)
        byte_ST = torch.randint(256, (members // 2, 9), generator=generator).to(torch.uint8)
        byte_ST[torch.rand(byte_ST.shape, generator=generator) < 0.1] = 0
        expected = kernel.read(byte_ST, states[0], range(members), 2, draw, details=True)
        found = device.read(byte_ST, states[1], range(members), 2, draw, details=True)
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours.cpu(), theirs)
        assert torch.equal(states[1].cpu(), states[0])
        fitness = pair_fitness(expected.score_N.long())
        assert torch.equal(pair_fitness(found.score_N.long()).cpu(), fitness)
        least = least_votes(2, members // 2)
        assert device.move(device.vote(fitness, draw), least) == kernel.move(kernel.vote(fitness, draw), least)
        for name, weight in device.parameters.items():
            assert torch.equal(weight.cpu(), on_cpu[name]), name


SMALL = ["model=egg:16x2", "population.size=128", "text.sample=12", "evaluation.every=3", "snapshots.every=2"]


def outcome(run: RunFolder) -> list[Any]:
    """What of a run does not depend on where it was computed."""
    with run.journal() as journal:
        signs, hashes = [entry.update.weights for entry in journal.entries()], dict(journal.hashes)
    records = [{key: value for key, value in record.items() if "second" not in key} for record in run.metrics()]
    return [signs, hashes, records, run.answers(), (run.model / "model.safetensors").read_bytes()]


def test_a_run_is_that_of_a_cpu_also_where_it_is_cut_short(tmp_path: Path) -> None:
    def recipe(name: str, device: str) -> Any:
        told = [f"engine.device={device}", "generations=7", "minutes=null", f"output_dir={tmp_path / name}"]
        return load_recipe("egg_tiny", [*SMALL, *told])

    expected = outcome(train(recipe("cpu", "cpu")))
    assert outcome(train(recipe("cuda", "cuda"))) == expected
    with interrupted_at(5, EggEngine, "apply"):
        train(recipe("cut", "cuda"))
    assert outcome(resume(tmp_path / "cut")) == expected
