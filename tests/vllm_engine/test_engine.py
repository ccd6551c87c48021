"""vLLM's populations against the transformers engine: tokens, weights, files."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from eggroll_rl.config import PopulationConfig, SamplingConfig
from eggroll_rl.data.dataset import load_data
from eggroll_rl.engines.local.decoding import likely, penalised
from eggroll_rl.engines.local.engine import LocalEngine
from eggroll_rl.engines.vllm.engine import VLLMEngine
from eggroll_rl.es.population import Population
from eggroll_rl.es.rollout import Completion, Prompt
from eggroll_rl.es.update import Update
from eggroll_rl.models.loading import load_model

from .conftest import MEMBERS, Engines, back_to_base, both, recipe_of

Answers = list[list[Completion]]
WEIGHTS = tuple(((7 * member) % 5 - 2) / 2 for member in range(MEMBERS))
GREEDY = SamplingConfig(max_new_tokens=24)


def prompts_of(engines: Engines) -> list[Prompt]:
    """Prompts of the task, and one of more than 300 tokens that they begin."""
    some: list[Prompt] = list(load_data(engines.recipe.data, 0).batch(0).prompts[:3])
    long = "".join(itertools.islice(itertools.cycle(map(str, some)), 40))
    ids = engines.vllm.tokenizer(long)["input_ids"][:330]
    return [*some, engines.vllm.tokenizer.decode(ids)]


def population_of(engines: Engines, generation: int = 0) -> Population:
    return Population(engines.recipe.seed, generation, engines.recipe.population)


def ask_both(engines: Engines, population: Population | None, sampling: SamplingConfig = GREEDY) -> Answers:
    """The answers that both give; every member and prompt of each."""
    prompts = prompts_of(engines)
    given, expected = (engine.generate(prompts, sampling, population) for engine in engines[1:3])
    assert given == expected
    return given


def test_members_answer_as_in_transformers(engines: Engines) -> None:
    """Before and after three updates; the unperturbed model is asked between populations and between their waves."""
    lengths = [len(engines.vllm.tokenizer(prompt)["input_ids"]) for prompt in prompts_of(engines)]
    assert max(lengths) > 300
    seen = []
    for generation in range(4):
        population = population_of(engines, generation)
        answers = ask_both(engines, population)
        assert len({tuple(row) for row in answers}) > MEMBERS // 2  # sigma is felt
        seen += [ask_both(engines, None)[0], answers[0]]
        middle = engines.vllm.generate(prompts_of(engines), GREEDY, population, range(5, 11))
        assert middle == answers[5:11]
        if generation < 3:
            update = Update(population, WEIGHTS, lr=2e-3)
            assert engines.vllm.apply(update) == pytest.approx(engines.transformers.apply(update), rel=1e-6)
    assert seen[0] != seen[-2]  # the updates are felt


@pytest.mark.parametrize("model", ["llama", "rwkv7"])
def test_a_head_alone_evolves(model: str) -> None:
    """vLLM makes adapters of layers only: some have slots that stay zero."""
    frozen = {"frozen": ["*.layers.*", "*embed*", "*norm*"]}
    engines = both(recipe_of(f"embedded:{model}-countdown", parameters=frozen))
    try:
        assert [parameter.name for parameter in engines.vllm.evolved] == ["lm_head.weight"]
        for generation in range(2):
            population = population_of(engines, generation)
            answers = ask_both(engines, population)
            assert len({tuple(row) for row in answers}) > MEMBERS // 2
            ask_both(engines, None)
            for engine in engines[1:3]:
                engine.apply(Update(population, WEIGHTS, lr=2e-3))
        assert engines.vllm.weights_hash() == engines.transformers.weights_hash()
    finally:
        engines.vllm.close()


def test_prompts_that_come_in_pieces_draw_the_same_numbers(engines: Engines) -> None:
    """More tokens of prompts than one step takes: some are read in two pieces, after the first of which vLLM samples
    as well. Alone, each member's prompts fit."""
    long = prompts_of(engines)[-1]
    prompts: list[Prompt] = [f"{number} {long}" for number in range(10, 16)]
    sampling, population = SamplingConfig(max_new_tokens=6, temperature=1.0), population_of(engines)
    most = engines.vllm.llm.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens
    tokens = sum(len(engines.vllm.tokenizer(prompt)["input_ids"]) for prompt in prompts)
    assert tokens < most < tokens * engines.vllm.slots
    together = engines.vllm.generate(prompts, sampling, population)
    assert len({answer.token_ids for row in together for answer in row}) > len(prompts)
    for member in range(MEMBERS):
        assert engines.vllm.generate(prompts, sampling, population, range(member, member + 1)) == [together[member]]


def test_twenty_generations_and_what_is_saved(engines: Engines, tmp_path: Path) -> None:
    for generation in range(20):
        for engine in (engines.vllm, engines.transformers):
            engine.apply(Update(population_of(engines, generation), WEIGHTS, lr=1e-3))
    given, expected = engines.vllm.state_dict(), engines.transformers.state_dict()
    assert given.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(given[name], tensor, rtol=1e-5, atol=1e-7)
    assert engines.vllm.weights_hash() == engines.transformers.weights_hash()

    for name, engine in (("given", engines.vllm), ("expected", engines.transformers)):
        engine.save(tmp_path / name)
    model, reference = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("given", "expected"))
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), parameter, rtol=1e-5, atol=1e-7)
    saved = LocalEngine(model.eval(), AutoTokenizer.from_pretrained(tmp_path / "given", padding_side="left"))
    prompts = prompts_of(engines)
    assert saved.generate(prompts, GREEDY) == engines.vllm.generate(prompts, GREEDY)


def test_a_saved_state_goes_on_where_it_was(engines: Engines) -> None:
    first, second = (Update(population_of(engines, generation), WEIGHTS, lr=1e-3) for generation in range(2))
    engines.vllm.apply(first)
    state = dict(engines.vllm.state_dict())
    engines.vllm.apply(second)
    after = engines.vllm.weights_hash()
    back_to_base(engines)
    assert engines.vllm.weights_hash() == engines.transformers.weights_hash() != after
    for engine in (engines.vllm, engines.transformers):
        engine.load_state_dict(state)
        engine.apply(second)
        assert engine.weights_hash() == after
    ask_both(engines, population_of(engines, 2))


def test_a_state_of_another_model_is_refused(engines: Engines) -> None:
    state = {key: tensor for key, tensor in engines.base.items() if "layers.1" not in key}
    with pytest.raises(ValueError, match=r"the saved state does not fit this model and recipe: model\.layers\.1"):
        engines.vllm.load_state_dict(state)


def test_answers_end_as_in_transformers(of_llama: Engines) -> None:
    """At the end token, at stop strings that tokens straddle, at a special token named as one, and at the bound."""
    back_to_base(of_llama)
    for stop, bound in (((), 48), (("</answer>",), 48), (("+", "=1"), 12), (("swer>",), 30), (("</think>",), 7)):
        answers = ask_both(of_llama, population_of(of_llama), SamplingConfig(max_new_tokens=bound, stop=stop))
        assert {answer.finished for row in answers for answer in row[:3]} >= ({True} if bound > 7 else {False})


def test_chat_prompts_go_through_the_chat_template(of_qwen3: Engines) -> None:
    engines = back_to_base(of_qwen3)
    chat: list[Prompt] = [[{"role": "user", "content": "12 + 34?"}], "[user] 12 + 34?\n[assistant] "]
    given, expected = (engine.generate(chat, GREEDY) for engine in engines[1:3])
    assert given == expected
    assert given[0][0] == given[0][1]


def test_sampled_answers_are_a_function_of_seed_generation_and_prompt(of_llama: Engines) -> None:
    """Members that differ by nothing draw the same random numbers for a prompt, and other prompts draw others."""
    engine: VLLMEngine = back_to_base(of_llama).vllm
    still = PopulationConfig(size=4, sigma=1e-9)
    prompts = [prompts_of(of_llama)[0]] * 3
    sampling = SamplingConfig(max_new_tokens=24, temperature=1.0, top_p=0.95)
    first = engine.generate(prompts, sampling, Population(3, 0, still))
    assert len({tuple(row) for row in first}) == 1
    assert len(set(first[0])) > 1
    assert engine.generate(prompts, sampling, Population(3, 0, still), range(2, 3)) == first[2:3]
    assert engine.generate(prompts, sampling, Population(3, 1, still)) != first
    assert engine.generate(prompts, sampling, Population(4, 0, still)) != first
    plain = engine.generate(prompts, sampling.model_copy(update={"seed": 3}))
    assert plain == first[:1] == engine.generate(prompts, sampling.model_copy(update={"seed": 3}))


def test_a_penalty_is_that_of_the_local_engine(of_llama: Engines) -> None:
    engines = back_to_base(of_llama)
    plain = ask_both(engines, None)
    for penalty in (0.8, 1.3):
        sampling = GREEDY.model_copy(update={"repetition_penalty": penalty})
        assert ask_both(engines, None, sampling) != plain
        ask_both(engines, population_of(engines), sampling)


@pytest.mark.parametrize(
    "changes",
    [
        {"top_k": 2},
        {"min_p": 0.4},
        {"top_p": 0.6},
        {"top_k": 5, "min_p": 0.1, "top_p": 0.9, "repetition_penalty": 1.3},
    ],
    ids="_".join,
)
@torch.inference_mode()
def test_only_tokens_that_the_local_engine_may_take_are_sampled(of_llama: Engines, changes: dict[str, Any]) -> None:
    engines = back_to_base(of_llama)
    model, tokenizer = load_model(engines.recipe.model)
    sampling = SamplingConfig(max_new_tokens=32, temperature=2.0, seed=5, **changes)
    prompts = prompts_of(engines)[:3]
    likeliest = []
    for prompt, answer in zip(prompts, engines.vllm.generate(prompts, sampling)[0], strict=True):
        before = tokenizer(prompt)["input_ids"]
        ids = torch.tensor([[*before, *answer.token_ids]])
        logits_TV = model(ids).logits[0, len(before) - 1 : -1].float()
        for place, token in enumerate(answer.token_ids):
            scores_1V = penalised(logits_TV[place, None], ids[:, : len(before) + place], sampling.repetition_penalty)
            likely_V = likely(scores_1V / sampling.temperature, sampling)[0]
            assert likely_V[token] > 0
            likeliest.append(int(likely_V.argmax()) == token)
    assert 0 < sum(likeliest) < len(likeliest)  # they are sampled
