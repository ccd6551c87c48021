"""A model divided between two processes, which are killed in the end."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from eggroll_rl.engines.vllm.engine import VLLMEngine
from eggroll_rl.es.update import Update
from eggroll_rl.system.errors import UsageError

from .conftest import Engines, back_to_base
from .test_engine import GREEDY, WEIGHTS, population_of, prompts_of


def divide(engines: Engines) -> Iterator[VLLMEngine]:
    options = engines.recipe.engine.vllm.model_copy(update={"tensor_parallel_size": 2, "masters": "cpu"})
    config = engines.recipe.engine.model_copy(update={"vllm": options})
    engine = VLLMEngine(engines.recipe.model_copy(update={"engine": config, "output_dir": Path("runs/a run")}))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def divided_qwen3(of_qwen3: Engines) -> Iterator[VLLMEngine]:
    """Both ranks have the one key and value head."""
    yield from divide(of_qwen3)


@pytest.fixture(scope="module")
def divided_rwkv7(of_rwkv7: Engines) -> Iterator[VLLMEngine]:
    """Each rank has half of the heads and of their states."""
    yield from divide(of_rwkv7)


@pytest.mark.parametrize("name", ["rwkv7", "qwen3"])  # the test below ends what was started last
def test_two_ranks_are_as_one(name: str, request: pytest.FixtureRequest) -> None:
    engines: Engines = request.getfixturevalue(f"of_{name}")
    divided: VLLMEngine = request.getfixturevalue(f"divided_{name}")
    whole, prompts = back_to_base(engines).vllm, prompts_of(engines)
    assert divided.weights_hash() == whole.weights_hash()
    for generation in range(3):
        population = population_of(engines, generation)
        for asked in (population, None):
            assert divided.generate(prompts, GREEDY, asked) == whole.generate(prompts, GREEDY, asked)
        update = Update(population, WEIGHTS, lr=2e-3)
        assert divided.apply(update) == pytest.approx(whole.apply(update), rel=1e-6)
    given, expected = dict(divided.state_dict()), dict(whole.state_dict())
    assert given.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(given[key], tensor, rtol=1e-5, atol=1e-7)
    divided.load_state_dict(engines.base)
    assert divided.generate(prompts, GREEDY) != whole.generate(prompts, GREEDY)
    divided.load_state_dict(expected)
    assert divided.weights_hash() == whole.weights_hash()
    assert divided.generate(prompts, GREEDY) == whole.generate(prompts, GREEDY)


def test_killed_processes_are_told_of(divided_qwen3: VLLMEngine, of_qwen3: Engines) -> None:
    """After the test above: nothing works any more, and each call says what to do."""
    descendants = psutil.Process().children(recursive=True)
    own = [process for process in descendants if "EngineCore" in " ".join(process.cmdline())]
    os.kill(max(own, key=psutil.Process.create_time).pid, signal.SIGKILL)
    calls: list[Callable[[], Any]] = [
        lambda: divided_qwen3.generate(prompts_of(of_qwen3), GREEDY, population_of(of_qwen3)),
        lambda: divided_qwen3.apply(Update(population_of(of_qwen3), WEIGHTS, lr=1.0)),
        divided_qwen3.state_dict,
    ]
    for call in calls:
        with pytest.raises(
            UsageError, match=r"vLLM's processes died.*go on with `eggroll-rl train --resume 'runs/a run'`"
        ):
            call()
    assert len(of_qwen3.vllm.generate(["a"], GREEDY)[0]) == 1  # another engine lives on
