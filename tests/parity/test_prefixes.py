"""Rows that have read the same tokens are read once where the head alone is perturbed, and answer as they do apart."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from eggroll_rl.config import ParametersConfig, PopulationConfig, SamplingConfig
from eggroll_rl.engines.local.choice import for_any, for_rwkv
from eggroll_rl.engines.local.eager import EagerDecoder
from eggroll_rl.engines.local.engine import LocalEngine
from eggroll_rl.engines.local.fused_plan import LEAST, block_of, scratch_of
from eggroll_rl.engines.local.fused_rwkv import FusedStep
from eggroll_rl.engines.local.prefixes import Prefixes
from eggroll_rl.engines.local.sharing import SharingDecoder
from eggroll_rl.es.population import Population
from eggroll_rl.es.rollout import Completion
from eggroll_rl.es.update import Update

PROMPTS = ("a", "is 12 in the </answer>?", "12 + 34 =")
HEAD_ALONE = ParametersConfig(frozen=("*.layers.*", "*embed*", "*norm*"))
SAMPLING = SamplingConfig(max_new_tokens=24, temperature=0.7, stop=("a", "12"))
POPULATION = Population(3, 0, PopulationConfig(size=40, sigma=0.2))


@settings(max_examples=200, deadline=None)
@given(data=st.data(), rows=st.integers(1, 12), alphabet=st.sampled_from([1, 2, 2**31]))
def test_a_prefix_is_what_its_rows_have_read(data: st.DataObject, rows: int, alphabet: int) -> None:
    """Through tokens and rows that leave, with the tokens of each prefix kept where an engine keeps states."""
    tokens = st.integers(0, alphabet - 1)
    read: list[list[int]] = [[data.draw(tokens)] for _ in range(rows)]
    prefixes, token_UT, mask_UT = Prefixes.of_prompts(torch.tensor(read), torch.ones(rows, 1, dtype=torch.long))
    assert mask_UT.all()
    states: list[list[int]] = token_UT.tolist()
    for _ in range(data.draw(st.integers(0, 6))):
        if len(read) > 1 and data.draw(st.booleans()):
            index = data.draw(st.lists(st.sampled_from(range(len(read))), min_size=1, unique=True))
            read = [read[row] for row in index]
            states = [states[prefix] for prefix in prefixes.keep(torch.tensor(index)).tolist()]
        token_M = data.draw(st.lists(tokens, min_size=len(read), max_size=len(read)))
        token_U, from_U = prefixes.follow(torch.tensor(token_M))
        states = [[*state, token] for state, token in zip(
            [*states, *(states[prefix] for prefix in from_U.tolist())], token_U.tolist(), strict=True
        )]  # fmt: skip
        read = [[*row, token] for row, token in zip(read, token_M, strict=True)]
        assert [states[prefix] for prefix in prefixes.of_M.tolist()] == read
        assert prefixes.count == len(states) == len({tuple(row) for row in read})
        row_M, begin = prefixes.rows()
        for prefix, (first, end) in enumerate(zip(begin[:-1].tolist(), begin[1:].tolist(), strict=True)):
            assert row_M[first:end].tolist() == (prefixes.of_M == prefix).nonzero()[:, 0].tolist()


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_scratch_has_room_for_the_blocks_of_fewer_rows(threads: int) -> None:
    for rows in range(1, 700):
        scratch = scratch_of(rows, threads)
        for fewer in range(1, rows + 1):
            assert (block_of(fewer, threads) * threads or fewer) <= scratch, (rows, fewer)
    assert scratch_of(LEAST * threads, threads) == LEAST * threads


@pytest.fixture
def answers_of(
    new_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[list[list[Completion]], list[int]]]:
    """An engine's answers, and how many rows each of its steps read."""
    made, step = [], FusedStep.__call__

    def counted(self: FusedStep, token_U: Tensor, *args: Any, **options: Any) -> Tensor:
        made.append(len(token_U))
        return step(self, token_U, *args, **options)

    monkeypatch.setattr(FusedStep, "__call__", counted)

    def answers_of(
        prompts: Sequence[str], population: Population | None, parameters: ParametersConfig, apart: bool = False
    ) -> tuple[list[list[Completion]], list[int]]:
        if apart:
            monkeypatch.setattr(FusedStep, "can_share", lambda *_: False)
        engine = LocalEngine(new_model("rwkv7"), tokenizer, seed=3, parameters=parameters, choice=for_rwkv)
        made.clear()
        return engine.generate(prompts, SAMPLING, population), made.copy()

    return answers_of


def test_members_with_a_head_of_their_own_answer_as_they_do_apart(answers_of: Callable[..., Any]) -> None:
    together, read = answers_of(PROMPTS, POPULATION, HEAD_ALONE)
    apart, all_read = answers_of(PROMPTS, POPULATION, HEAD_ALONE, apart=True)
    assert together == apart
    assert len({answer.text for row in together for answer in row}) > len(PROMPTS), "members differ"
    assert read[0] == len(PROMPTS) < max(read) and sum(read) < sum(all_read) / 2


def test_rows_of_the_unperturbed_model_share_their_prompts(answers_of: Callable[..., Any]) -> None:
    together, read = answers_of(PROMPTS * 40, None, HEAD_ALONE)
    apart, all_read = answers_of(PROMPTS * 40, None, HEAD_ALONE, apart=True)
    assert together == apart
    assert read[0] == len(PROMPTS) and read[-1] == all_read[-1]


def test_members_whose_layers_differ_share_nothing(answers_of: Callable[..., Any]) -> None:
    _, read = answers_of(PROMPTS, POPULATION, ParametersConfig())
    assert read[0] == POPULATION.size * len(PROMPTS)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_forward_passes_share_what_has_been_read(
    new_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    temperature: float,
) -> None:
    """Members whose heads alone differ, before and after an update; batches that are cut, and rows that leave."""
    untied = new_model(architecture, tie_word_embeddings=False)
    sampling, read = SAMPLING.model_copy(update={"temperature": temperature}), []
    engines = []
    for shares in (True, False):
        if not shares:
            monkeypatch.setattr("eggroll_rl.engines.local.choice.can_read_once", lambda *_: False)
        model = copy.deepcopy(untied)
        model.register_forward_pre_hook(
            lambda _, args, options: read.append(len(options["input_ids"])), with_kwargs=True
        )
        engines.append(LocalEngine(model, tokenizer, seed=3, parameters=HEAD_ALONE, choice=for_any, max_rows=70))
    assert [type(engine.decoder) for engine in engines] == [SharingDecoder, EagerDecoder]
    for generation in range(2):
        population = Population(3, generation, POPULATION.config)
        read.clear()
        together, shared = engines[0].generate(PROMPTS, sampling, population), read.copy()
        assert together == engines[1].generate(PROMPTS, sampling, population)
        assert shared[0] == len(PROMPTS) and sum(shared) < sum(read[len(shared) :])
        assert len({answer.text for row in together for answer in row}) > len(PROMPTS), "members differ"
        assert engines[0].generate(PROMPTS, sampling) == engines[1].generate(PROMPTS, sampling)
        for engine in engines:
            engine.apply(Update(population, (1.0, -1.0) * 20, 0.01))


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3_text", "rwkv7"])
def test_logits_changed_after_the_head_and_other_states_forbid_sharing(
    new_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerFast, architecture: str
) -> None:
    options = {} if architecture == "rwkv7" else {"tie_word_embeddings": False}
    model = new_model(architecture, **options)
    engine = LocalEngine(model, tokenizer, parameters=HEAD_ALONE, choice=for_any)
    assert type(engine.decoder) is EagerDecoder
    answers = engine.generate(PROMPTS, SAMPLING, POPULATION)
    assert len({answer.text for row in answers for answer in row}) > len(PROMPTS), "members differ"
