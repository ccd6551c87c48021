"""Each member's answers in one batched pass, against its materialised model run alone, prompt by prompt, unpadded."""

import copy
import itertools
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from eggroll_rl.config import OptimizerConfig, ParametersConfig, PopulationConfig, SamplingConfig
from eggroll_rl.engines.local import fused_rwkv as rwkv
from eggroll_rl.engines.local.choice import Choice, for_any, for_rwkv
from eggroll_rl.engines.local.engine import LocalEngine
from eggroll_rl.engines.local.fused_rwkv import FusedDecoder, FusedStep
from eggroll_rl.es.layers import materialized_state
from eggroll_rl.es.population import Population
from eggroll_rl.es.rollout import Completion
from eggroll_rl.es.update import Update
from eggroll_rl.system.errors import UsageError

NewModel = Callable[..., PreTrainedModel]
Build = Callable[..., LocalEngine]

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "gpt2", "rwkv7")
PROMPTS = ("a", "is 12 in the </answer>?", "12 + 34 =")  # the second is longer than a sliding window
TOKENS = 8
ENGINES = [*((for_any, architecture) for architecture in ARCHITECTURES), (for_rwkv, "rwkv7")]
SIGMA = 0.05
SEED = 3
CLOSE = 3e-5  # two logits this near may change places by rounding
DENSE = {  # norms and biases, besides the matrices
    "llama": ("*norm*",),
    "qwen2": ("*norm*", "*.bias"),
    "qwen3": ("*norm*",),
    "gemma": ("*norm*",),
    "gemma2": ("*norm*",),
    "gemma3_text": ("*norm*",),
    "gpt2": ("*.ln_*", "*.bias"),
    "rwkv7": ("*_norm.*", "*lora.2.bias", "model.norm.*"),
}


@pytest.fixture
def build(new_model: NewModel, tokenizer: PreTrainedTokenizerFast) -> Build:
    def engine(
        architecture: str,
        choice: Choice = for_any,
        **options: Any,
    ) -> LocalEngine:
        usual = {"seed": SEED, "parameters": ParametersConfig(), "choice": choice}
        return LocalEngine(new_model(architecture), tokenizer, **{**usual, **options})

    return engine


def population_of(size: int = 6, rank: int = 1, antithetic: bool = True, generation: int = 0) -> Population:
    return Population(SEED, generation, PopulationConfig(size=size, rank=rank, sigma=SIGMA, antithetic=antithetic))


def alone(engine: LocalEngine, population: Population | None, tokens: int = TOKENS) -> list[list[Completion]]:
    """The greedy answers of each member's own model; asserts that no decision is a near tie."""
    base = dict(engine.model.named_parameters())
    answers = []
    for member in range(population.size if population else 1):
        model = copy.deepcopy(engine.model)
        if population:
            state = materialized_state(base, engine.evolved, engine.noise, population, member)
            for name, parameter in model.named_parameters():
                parameter.copy_(state.get(name, parameter))
            for layer in model.modules():  # the copy brought the engine's hooks along
                layer._forward_hooks.clear()
        answers.append([greedy(model, engine.tokenizer, prompt, tokens) for prompt in PROMPTS])
    return answers


def greedy(model: Any, tokenizer: Any, prompt: str, tokens: int) -> Completion:
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    best = torch.cat(output.logits).topk(2).values
    assert (best[:, 0] - best[:, 1]).min() > CLOSE, "a near tie: the answers prove nothing; change the model's seed"
    new, ends = output.sequences[0, ids.shape[1] :].tolist(), model.generation_config.eos_token_id
    kept = list(itertools.takewhile(lambda token: token not in (ends if isinstance(ends, list) else [ends]), new))
    return Completion(tokenizer.decode(kept, skip_special_tokens=True), tuple(kept), kept != new)


def answers_of(engine: LocalEngine, population: Population | None, tokens: int = TOKENS) -> list[list[Completion]]:
    return engine.generate(PROMPTS, SamplingConfig(max_new_tokens=tokens), population)


def assert_same(engine: LocalEngine, population: Population, tokens: int = TOKENS) -> None:
    answers = answers_of(engine, population, tokens)
    assert answers == alone(engine, population, tokens)
    assert all(len({row[prompt].token_ids for row in answers}) > 1 for prompt in range(len(PROMPTS)))  # sigma is felt


@pytest.mark.parametrize(("rank", "antithetic"), [(1, True), (2, False)])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_members_answer_as_their_own_model_does(build: Build, architecture: str, rank: int, antithetic: bool) -> None:
    engine = build(architecture, population=PopulationConfig(rank=rank))
    assert_same(engine, population_of(rank=rank, antithetic=antithetic))
    assert answers_of(engine, None) == alone(engine, None)


@pytest.mark.parametrize(("kind", "architecture"), ENGINES)
def test_rows_leave_when_they_end(build: Build, kind: Choice, architecture: str) -> None:
    """Every seventh token ends an answer, so batches shrink again and again while the others go on."""
    engine = build(architecture, kind)
    engine.model.generation_config.eos_token_id = list(range(1, 150, 7))
    answers = answers_of(engine, population_of(), tokens=20)
    assert answers == alone(engine, population_of(), tokens=20)
    assert len({len(answer.token_ids) for row in answers for answer in row}) > 3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_norms_and_biases_evolve_too(build: Build, architecture: str) -> None:
    frozen = ("*embed*", "*lm_head*", "*wte*", "*wpe*", "*.r_k", "*g_norm*", "*pre_norm*")
    parameters = ParametersConfig(frozen=frozen, dense=DENSE[architecture])
    engine = build(architecture, parameters=parameters)
    assert {parameter.kind for parameter in engine.evolved} == {"lowrank", "dense"}
    assert_same(engine, population_of(size=4, generation=1))


def test_an_untied_head_evolves_too(build: Build) -> None:
    for kind, architecture in ((for_any, "llama"), (for_rwkv, "rwkv7")):
        engine = build(architecture, kind, parameters=ParametersConfig(frozen=("*embed*", "*norm*", "*.r_k")))
        assert "lm_head.weight" in {parameter.name for parameter in engine.evolved}
        assert_same(engine, population_of(size=4, generation=2))


def test_the_rwkv_engine_refuses_other_models(build: Build) -> None:
    with pytest.raises(UsageError, match="engine rwkv runs RWKV-7 models, and this is a LlamaForCausalLM"):
        build("llama", for_rwkv)


@pytest.mark.parametrize("architecture", ["qwen2", "gpt2"])
def test_a_tied_head_is_refused(build: Build, architecture: str) -> None:
    with pytest.raises(UsageError, match="one tied tensor"):
        build(architecture, parameters=ParametersConfig(frozen=()))


@pytest.mark.parametrize("stepwise", [True, False])
@pytest.mark.parametrize(("rank", "antithetic"), [(1, True), (1, False), (2, True)])
def test_members_of_the_fused_rwkv_engine(
    build: Build, monkeypatch: pytest.MonkeyPatch, rank: int, antithetic: bool, stepwise: bool
) -> None:
    """``stepwise``: the prompts, padded on the left, go through the fused step as well."""
    monkeypatch.setattr(rwkv, "STEP_PROMPTS_FROM", 1 if stepwise else 10**6)
    engine = build("rwkv7", for_rwkv, population=PopulationConfig(rank=rank))
    assert isinstance(engine.decoder, FusedDecoder)
    assert_same(engine, population_of(rank=rank, antithetic=antithetic), tokens=20)
    assert answers_of(engine, None) == alone(engine, None)


@pytest.mark.parametrize("stepwise", [True, False])
@pytest.mark.parametrize("lowrank", [("*",), ("*head*",), ("nothing",)])
def test_vectors_in_the_fused_step(
    build: Build, monkeypatch: pytest.MonkeyPatch, lowrank: tuple[str, ...], stepwise: bool
) -> None:
    """Norms and biases with noise of their own, beside all matrices, the head or none."""
    monkeypatch.setattr(rwkv, "STEP_PROMPTS_FROM", 1 if stepwise else 10**6)
    frozen = ("*embed*", "*pre_norm*", "*g_norm*", "*.r_k")
    parameters = ParametersConfig(frozen=frozen, dense=rwkv.VECTORS, lowrank=lowrank)
    engine = build("rwkv7", for_rwkv, parameters=parameters, optimizer=OptimizerConfig(name="sgd"))
    assert isinstance(engine.decoder, FusedDecoder)
    dense = [parameter.name for parameter in engine.evolved if parameter.kind == "dense"]
    assert all(any(fnmatchcase(name, glob) for name in dense) for glob in rwkv.VECTORS)
    engine.apply(Update(population_of(), (1.0, -0.5, 2.0, 0.0, -1.5, -1.0), lr=0.5))
    for population in (None, population_of(antithetic=False), population_of(generation=1)):
        answers = answers_of(engine, population, tokens=20)
        assert answers == alone(engine, population, tokens=20)
        assert population is None or len({answer.token_ids for row in answers for answer in row}) > len(PROMPTS)


@pytest.mark.parametrize(("kind", "architecture"), [(for_any, "llama"), (for_rwkv, "rwkv7")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_row_limits_change_nothing(build: Build, kind: Choice, architecture: str, temperature: float) -> None:
    """The limits cut a batch within a pair, and within a member; stop strings end the answers at different times."""
    sampling = SamplingConfig(max_new_tokens=24, temperature=temperature, stop=("a", "12"))
    population = population_of(size=12)
    engines = [build(architecture, kind, max_rows=rows) for rows in (None, 9, 2)]
    first, *others = [engine.generate(PROMPTS, sampling, population) for engine in engines]
    lengths = [len(answer.token_ids) for row in first for answer in row]
    assert min(lengths) < max(lengths)
    assert all(answers == first for answers in others)
    assert engines[0].generate(PROMPTS, sampling, population, range(5, 11)) == first[5:11]


def test_chat_prompts_go_through_the_chat_template(build: Build) -> None:
    engine, sampling = build("llama"), SamplingConfig(max_new_tokens=TOKENS)
    chat = [{"role": "user", "content": "12 + 34?"}]
    rendered = "[user] 12 + 34?\n[assistant] "
    assert engine.generate([chat, "a"], sampling) == engine.generate([rendered, "a"], sampling)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize(("kind", "architecture"), [(for_any, "gpt2"), (for_any, "llama"), (for_rwkv, "rwkv7")])
def test_members_after_an_update(build: Build, kind: Choice, architecture: str, optimizer: str) -> None:
    engine = build(architecture, kind, optimizer=OptimizerConfig(name=optimizer))
    before = answers_of(engine, None)
    population = population_of()
    answers_of(engine, population)
    engine.apply(Update(population, (1.0, -0.5, 2.0, 0.0, -1.5, -1.0), lr=0.05))
    assert answers_of(engine, None) == alone(engine, None) != before
    assert_same(engine, population_of(generation=1))


@pytest.mark.parametrize("antithetic", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "rwkv7"])
def test_apply_is_the_dense_sum(build: Build, architecture: str, antithetic: bool) -> None:
    """SGD moves the weights by ``lr / (N sigma) * sum_i w_i (W_i - W) / sigma``, and nothing else moves."""
    frozen = ("*embed*", "*lm_head*", "*wte*", "*wpe*", "*.r_k", "*g_norm*", "*pre_norm*")
    engine = build(
        architecture,
        parameters=ParametersConfig(frozen=frozen, dense=DENSE[architecture]),
        population=PopulationConfig(rank=2),
        optimizer=OptimizerConfig(name="sgd"),
    )
    population = population_of(rank=2, antithetic=antithetic)
    weights, lr = (1.0, -0.5, 2.0, 0.25, -1.5, -1.25), 3.0
    before = {name: parameter.clone() for name, parameter in engine.model.named_parameters()}
    zero = {name: torch.zeros_like(parameter) for name, parameter in before.items()}
    offsets = [materialized_state(zero, engine.evolved, engine.noise, population, member) for member in range(6)]
    rms = engine.apply(Update(population, weights, lr))

    squares, elements = 0.0, 0
    for name, parameter in engine.model.named_parameters():
        moved = parameter - before[name]
        if name not in offsets[0]:
            assert not moved.any(), name
            continue
        expected = sum(weight * offset[name].double() for weight, offset in zip(weights, offsets, strict=True))
        assert isinstance(expected, Tensor)
        expected *= lr / (population.size * SIGMA**2)
        error = (moved.double() - expected).norm() / expected.norm()
        assert error < 1e-5, name
        squares, elements = squares + expected.square().sum().item(), elements + expected.numel()
    assert rms == pytest.approx((squares / elements) ** 0.5, rel=1e-5)


@pytest.mark.parametrize("head_dim", [16, 32, 64])
@pytest.mark.parametrize("rows", [1, 2, 7, 100])
@torch.inference_mode()
def test_fused_logits_equal_unfused_logits(new_model: NewModel, head_dim: int, rows: int) -> None:
    """The state starts from an unfused pass over a prompt and is carried over twelve steps."""
    model: Any = new_model("rwkv7", 0.2, hidden_size=64, head_dim=head_dim, intermediate_size=80, num_hidden_layers=3)
    torch.manual_seed(rows)
    prompt_MT, token_TM = torch.randint(150, (rows, 19)), torch.randint(150, (12, rows))
    step, state = FusedStep(model), model(prompt_MT, use_cache=True).past_key_values
    expected, other = model(prompt_MT, use_cache=True).past_key_values, step.new_state(rows)
    for token_M in prompt_MT.T:
        step(token_M.contiguous(), other, None)
    for token_M in token_TM:
        output = model(token_M[:, None], past_key_values=expected, use_cache=True)
        for carried in (state, other):
            torch.testing.assert_close(step(token_M, carried, None), output.logits[:, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize(
    "lowrank",
    [("*",), ("*r_proj*", "*layers.1.ffn.value*"), ("*o_proj*", "*lora.0*"), ("*layers.1.*lora.2*", "*.ffn.key*")],
)
def test_fused_members_with_some_matrices_frozen(build: Build, lowrank: tuple[str, ...], rank: int) -> None:
    options = {"population": PopulationConfig(rank=rank), "parameters": ParametersConfig(lowrank=lowrank)}
    fused, unfused = build("rwkv7", for_rwkv, **options), build("rwkv7", **options)
    population = population_of(size=26, rank=rank)
    answers = answers_of(fused, population, tokens=12)
    assert answers == answers_of(unfused, population, tokens=12)
    assert answers != [answers_of(fused, None, tokens=12)[0]] * population.size
