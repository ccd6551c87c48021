"""Engines on a CUDA device, with graphs and kernels, against the CPU's. Not collected by default: ``make test-gpu``."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from eggroll_rl.config import OptimizerConfig, ParametersConfig, PopulationConfig, SamplingConfig
from eggroll_rl.engines.local.engine import LocalEngine
from eggroll_rl.engines.local.static import StaticDecoder
from eggroll_rl.engines.memory import free_bytes
from eggroll_rl.es.kernels import timing
from eggroll_rl.es.population import Population
from eggroll_rl.es.update import Update

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

PROMPTS = ("a", "is 12 in the </answer>?", "12 + 34 =")
SAMPLING = SamplingConfig(max_new_tokens=24)
CUDA = torch.device("cuda")


@pytest.fixture
def build(new_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerFast) -> Callable[..., LocalEngine]:
    def new(architecture: str, device: str = "cuda", dtype: torch.dtype = torch.float32, rank: int = 1) -> Any:
        engine = LocalEngine(
            new_model(architecture).to(device, dtype),  # type: ignore[call-overload]
            tokenizer,
            seed=3,
            population=PopulationConfig(size=10, rank=rank),
            parameters=ParametersConfig(),
            optimizer=OptimizerConfig(name="sgd"),
        )
        engine.model.generation_config.eos_token_id = list(range(1, 150, 7))  # rows leave again and again
        return engine

    return new


def population(generation: int, rank: int = 1) -> Population:
    return Population(3, generation, PopulationConfig(size=10, rank=rank, sigma=0.05))


@pytest.mark.parametrize("regenerates", [False, True])
@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "rwkv7"])
def test_cuda_answers_as_the_cpu_does(build: Any, architecture: str, rank: int, regenerates: bool) -> None:
    cpu, cuda = build(architecture, "cpu", rank=rank), build(architecture, rank=rank)
    cuda.regenerates = regenerates
    for generation in range(2):
        who = population(generation, rank)
        assert cuda.generate(PROMPTS, SAMPLING, who) == cpu.generate(PROMPTS, SAMPLING, who)
        for engine in (cpu, cuda):
            engine.apply(Update(who, tuple(range(-5, 5)), lr=0.01))
        assert cuda.generate(PROMPTS, SAMPLING) == cpu.generate(PROMPTS, SAMPLING)
    assert (isinstance(cuda.decoder, StaticDecoder) and cuda.decoder.capture) == (architecture != "gemma2")


@pytest.mark.parametrize("architecture", ["llama", "rwkv7"])
def test_generations_share_their_graphs(build: Any, architecture: str) -> None:
    engine = build(architecture)
    for generation in range(3):
        engine.generate(PROMPTS, SAMPLING, population(generation))
        step = engine.decoder.current
        assert step is not None
        if generation == 0:
            first = dict(step.graphs)
        assert first.items() <= step.graphs.items()
    assert step.graphs


@pytest.mark.parametrize("architecture", ["llama", "rwkv7"])
def test_bfloat16_members_differ_and_learn_from_fp32_masters(build: Any, architecture: str) -> None:
    engine = build(architecture, dtype=torch.bfloat16)
    answers = engine.generate(PROMPTS, SAMPLING, population(0))
    assert len({answer.token_ids for row in answers for answer in row}) > 3
    engine.apply(Update(population(0), tuple(range(-5, 5)), lr=1e-4))
    named = dict(engine.model.named_parameters())
    for name, master in engine.learner.masters.items():
        assert master.dtype == torch.float32
        assert torch.equal(named[name], master.bfloat16())


def test_torch_s_own_reserve_counts_as_free() -> None:
    before = free_bytes(CUDA)
    large = torch.empty(2**28, device=CUDA)
    assert before - free_bytes(CUDA) >= large.nbytes
    del large
    assert before - free_bytes(CUDA) < 2**27


def test_the_timings_name_every_way() -> None:
    seconds = timing.lowrank_seconds(CUDA, rows=64, pairs=32, width=512)
    assert seconds.keys() == {"torch", "read", "regenerate"}
    assert min(seconds.values()) > 0
    assert min(timing.rates(CUDA, elements=2**20)) > 0
