"""What is sampled, and what a penalty does, against the logits processors and the ``generate`` of transformers."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from eggroll_rl.config import ParametersConfig, PopulationConfig, SamplingConfig
from eggroll_rl.engines.local.choice import Choice, fastest, for_any, for_rwkv
from eggroll_rl.engines.local.decoding import likely, penalised, uniform
from eggroll_rl.engines.local.engine import LocalEngine
from eggroll_rl.engines.local.static import StaticDecoder
from eggroll_rl.es.layers import materialized_state
from eggroll_rl.es.population import Population

PROMPTS = ("12 + 34 =", "a", "is 12 in the </answer>?")
SEED = 3


def static(model: Any, layers: Any, _: Any) -> StaticDecoder:
    return StaticDecoder(model, layers)


ENGINES = [(for_any, "llama"), (for_any, "gpt2"), (for_any, "rwkv7"), (for_rwkv, "rwkv7"), (static, "llama")]
SETTINGS = [
    SamplingConfig(repetition_penalty=1.3),
    SamplingConfig(repetition_penalty=0.7),
    SamplingConfig(temperature=1.5, top_k=5),
    SamplingConfig(temperature=1.5, min_p=0.1),
    SamplingConfig(temperature=2.0, top_k=20, top_p=0.8, min_p=0.05, repetition_penalty=1.5),
]


def processors_of(sampling: SamplingConfig) -> LogitsProcessorList:
    """In the order of ``GenerationMixin._get_logits_processor``."""
    processors = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature:
        processors.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k:
            processors.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            processors.append(TopPLogitsWarper(sampling.top_p))
        processors.append(MinPLogitsWarper(sampling.min_p))
    return processors


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    vocabulary=st.integers(1, 70),
    seen=st.integers(1, 90),
    spread=st.sampled_from([0.1, 1.0, 5.0]),
    ties=st.booleans(),
    sampling=st.builds(
        SamplingConfig,
        temperature=st.floats(0.2, 3.0),
        top_k=st.sampled_from([0, 1, 2, 7, 69, 70, 1000]),
        top_p=st.sampled_from([1.0, 0.97, 0.6, 0.13]),
        min_p=st.sampled_from([0.0, 0.01, 0.2, 0.77]),
        repetition_penalty=st.sampled_from([1.0, 1.3, 0.6, 20.0]),
    ),
)
def test_probabilities_are_those_of_transformers(
    seed: int, vocabulary: int, seen: int, spread: float, ties: bool, sampling: SamplingConfig
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_MV = torch.randn(6, vocabulary, generator=generator) * spread
    if ties and sampling.top_p == 1:  # of equals, a nucleus may take any
        logits_MV = logits_MV.round()
    seen_MT = torch.randint(vocabulary, (6, seen), generator=generator)
    expected_MV = torch.softmax(processors_of(sampling)(seen_MT, logits_MV), -1)
    given_MV = likely(penalised(logits_MV, seen_MT, sampling.repetition_penalty) / sampling.temperature, sampling)
    given_MV = given_MV / given_MV.sum(-1, keepdim=True)
    assert torch.equal(given_MV > 0, expected_MV > 0)
    torch.testing.assert_close(given_MV, expected_MV, rtol=1e-4, atol=1e-7)


def by_transformers(model: Any, ids: list[int], sampling: SamplingConfig, generation: int, prompt: int) -> list[int]:
    """One answer by whole forward passes and transformers' processors, with the random numbers of this prompt."""
    processors, sequence_1T, ends = processors_of(sampling), torch.tensor([ids]), model.generation_config.eos_token_id
    for position in range(sampling.max_new_tokens):
        scores_1V = processors(sequence_1T, model(sequence_1T).logits[:, -1].float())
        if sampling.temperature:
            cumulative_V = torch.softmax(scores_1V[0], -1).cumsum(-1)
            u = uniform(SEED, "sampling", generation, torch.tensor([prompt]), torch.tensor([position]))
            token = int((cumulative_V <= u * cumulative_V[-1]).sum())
        else:
            token = int(scores_1V.argmax())
        if token in ends:
            break
        sequence_1T = torch.cat((sequence_1T, torch.tensor([[token]])), dim=1)
    return sequence_1T[0, len(ids) :].tolist()


@pytest.mark.parametrize(("kind", "architecture"), ENGINES)
@torch.inference_mode()
def test_members_answer_token_by_token_as_by_transformers(
    kind: Choice,
    architecture: str,
    new_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Prompts of three lengths in one batch, rows that leave it, every member and the model without noise."""
    engine = LocalEngine(new_model(architecture), tokenizer, seed=SEED, parameters=ParametersConfig(), choice=kind)
    engine.model.generation_config.eos_token_id = list(range(1, 150, 17))
    population = Population(SEED, 4, PopulationConfig(size=4, sigma=0.05))
    base, bare = dict(engine.model.named_parameters()), new_model(architecture)
    models = []
    for member in range(population.size):
        model = copy.deepcopy(bare)
        model.generation_config.eos_token_id = engine.model.generation_config.eos_token_id
        state = materialized_state(base, engine.evolved, engine.noise, population, member)
        for name, parameter in model.named_parameters():
            parameter.copy_(state.get(name, parameter))
        models.append(model)
    bare.generation_config.eos_token_id = engine.model.generation_config.eos_token_id
    encoded = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    plain = engine.generate(PROMPTS, SamplingConfig(max_new_tokens=16), population)
    for short in SETTINGS:
        sampling = short.model_copy(update={"max_new_tokens": 16, "seed": SEED})
        given = [[list(answer.token_ids) for answer in row] for row in engine.generate(PROMPTS, sampling, population)]
        assert given == [[by_transformers(m, ids, sampling, 4, p) for p, ids in enumerate(encoded)] for m in models]
        assert given != [[list(answer.token_ids) for answer in row] for row in plain]
        (alone,) = engine.generate(PROMPTS, sampling)
        expected = [by_transformers(bare, ids, sampling, 0, p) for p, ids in enumerate(encoded)]
        assert [list(answer.token_ids) for answer in alone] == expected


@pytest.mark.parametrize("penalty", [0.8, 1.2, 3.0])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "rwkv7"])
def test_a_penalty_is_that_of_generate(
    architecture: str, penalty: float, new_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = LocalEngine(new_model(architecture), tokenizer, choice=fastest)
    (answers,) = engine.generate(PROMPTS, SamplingConfig(max_new_tokens=24, repetition_penalty=penalty))
    model: Any = new_model(architecture)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        options: dict[str, Any] = {"max_new_tokens": 24, "do_sample": False, "repetition_penalty": penalty}
        made = model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, ids.shape[1] :].tolist()
        kept = made[: made.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in made else made
        assert list(answer.token_ids) == kept


def test_members_that_differ_by_nothing_answer_alike(
    new_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerFast
) -> None:
    """Random numbers stay common, and neither rows nor their order matter."""
    sampling = SETTINGS[-1].model_copy(update={"max_new_tokens": 12, "stop": ("a",)})
    population = Population(SEED, 2, PopulationConfig(size=6, sigma=1e-9))
    answers = []
    for rows in (None, 7, 2):
        engine = LocalEngine(
            new_model("llama"), tokenizer, seed=SEED, parameters=ParametersConfig(), max_rows=rows, choice=for_any
        )
        answers.append(engine.generate(PROMPTS, sampling, population))
    assert answers[0] == [answers[0][0]] * 6 == answers[1] == answers[2]
    assert len({answer.token_ids for answer in answers[0][0]}) > 1
