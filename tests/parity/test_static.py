"""Steps at fixed addresses, uncaptured, answer as the engine does without them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from eggroll_rl.config import OptimizerConfig, ParametersConfig, PopulationConfig, SamplingConfig
from eggroll_rl.engines.local.choice import fastest
from eggroll_rl.engines.local.engine import LocalEngine
from eggroll_rl.engines.local.memories import can_be_static
from eggroll_rl.engines.local.static import StaticDecoder, size_of
from eggroll_rl.es.population import Population
from eggroll_rl.es.update import Update

PROMPTS = ("a", "is 12 in the </answer>?", "12 + 34 =")
DENSE = {"llama": ("*norm*",), "gpt2": ("*.ln_*", "*.bias"), "rwkv7": ()}


@pytest.fixture
def engines(
    new_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerFast
) -> Callable[..., list[LocalEngine]]:
    """The same engine twice, the second with static steps."""

    def new(architecture: str, rank: int = 1, **options: Any) -> list[LocalEngine]:
        pair = [
            LocalEngine(
                new_model(architecture),
                tokenizer,
                seed=3,
                population=PopulationConfig(rank=rank),
                parameters=ParametersConfig(
                    frozen=("*embed*", "*lm_head*", "*wte*", "*wpe*", "*.r_k", "*g_norm*", "*pre_norm*"),
                    dense=DENSE[architecture],
                ),
                optimizer=OptimizerConfig(name="sgd"),
                choice=choice,
                **options,
            )
            for choice in (fastest, lambda model, layers, _: StaticDecoder(model, layers))
        ]
        for engine in pair:
            engine.model.generation_config.eos_token_id = list(range(1, 150, 7))  # rows leave again and again
        return pair

    return new


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "rwkv7"])
def test_static_steps_answer_alike(engines: Any, architecture: str, rank: int) -> None:
    """Two generations and the base model, over batches that shrink and that differ in rows and lengths."""
    usual, static = engines(architecture, rank)
    for generation, prompts in enumerate((PROMPTS, PROMPTS[:2])):
        population = Population(3, generation, PopulationConfig(size=10, rank=rank, sigma=0.05))
        answers, others = (e.generate(prompts, SamplingConfig(max_new_tokens=24), population) for e in (usual, static))
        assert others == answers
        assert len({len(answer.token_ids) for row in answers for answer in row}) > 2
        for engine in (usual, static):
            engine.apply(Update(population, tuple(range(-5, 5)), lr=0.01))
        sampling = SamplingConfig(max_new_tokens=9, temperature=1.0)
        assert static.generate(prompts, sampling) == usual.generate(prompts, sampling)


def test_batches_of_parts_of_the_population_share_the_steps(engines: Any) -> None:
    usual, static = engines("llama", max_rows=7)
    population = Population(3, 0, PopulationConfig(size=10, sigma=0.05))
    sampling = SamplingConfig(max_new_tokens=12, temperature=1.0)
    expected = usual.generate(PROMPTS, sampling, population)
    assert static.generate(PROMPTS, sampling, population) == expected
    assert isinstance(static.decoder, StaticDecoder)
    step = static.decoder.current
    assert step is not None
    assert static.generate(PROMPTS, sampling, population, range(3, 9)) == expected[3:9]
    assert static.decoder.current is step
    assert step.nbytes() > 2 * 2 * step.rows * step.capacity * 2 * 8 * 4  # keys and values of two layers, two heads


@pytest.mark.parametrize(("architecture", "stays"), [("rwkv7", True), ("llama", False)])
def test_longer_answers_need_no_new_steps_of_a_recurrent_model(engines: Any, architecture: str, stays: bool) -> None:
    usual, static = engines(architecture)
    static.generate(PROMPTS, SamplingConfig(max_new_tokens=2))
    step = static.decoder.current
    longer = SamplingConfig(max_new_tokens=140)
    assert static.generate(PROMPTS[:2], longer) == usual.generate(PROMPTS[:2], longer)
    assert (static.decoder.current is step) == stays


@torch.inference_mode()
def test_the_room_beyond_an_answer_may_hold_anything(engines: Any) -> None:
    _, static = engines("llama")
    sampling = SamplingConfig(max_new_tokens=12)
    expected = static.generate(PROMPTS, sampling)
    static.generate([PROMPTS[1] * 2] * 3, SamplingConfig(max_new_tokens=40))
    assert static.generate(PROMPTS, sampling) == expected


def test_which_models_can_be_static(new_model: Callable[..., PreTrainedModel]) -> None:
    assert all(can_be_static(new_model(name)) for name in ("llama", "qwen3", "gpt2", "rwkv7"))
    assert not any(can_be_static(new_model(name)) for name in ("gemma2", "gemma3_text"))  # sliding windows


def test_sizes_are_few_and_little_larger() -> None:
    sizes = [size_of(rows, 1000) for rows in range(1, 1001)]
    assert all(rows <= size <= 1.25 * rows + 1 for rows, size in enumerate(sizes, 1))
    assert sizes == sorted(sizes)
    assert len(set(sizes)) < 40
    assert sizes[-1] == 1000
