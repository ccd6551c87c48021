"""Prompts that begin alike are read once for each member as far as that goes, and are answered as if read apart."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from eggroll_rl.config import ParametersConfig, PopulationConfig, SamplingConfig
from eggroll_rl.engines.local import eager
from eggroll_rl.engines.local.choice import for_any
from eggroll_rl.engines.local.common_prefix import common_tokens
from eggroll_rl.engines.local.engine import LocalEngine
from eggroll_rl.es.population import Population

COMMON = "you are given numbers and a target"
PROMPTS = (f"{COMMON}: 12", f"{COMMON}, so", f"{COMMON}: 12 and 34 and more", f"{COMMON}")
SAMPLING = SamplingConfig(max_new_tokens=16)
ENDS = list(range(1, 150, 7))  # rows leave again and again


@settings(max_examples=200, deadline=None)
@given(rows=st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=8), min_size=1, max_size=5))
def test_common_tokens_are_those_that_all_prompts_begin_with(rows: list[list[int]]) -> None:
    longest = max(map(len, rows))
    token_MT = torch.tensor([[9] * (longest - len(row)) + row for row in rows])
    mask_MT = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    alike = 0
    while alike < min(map(len, rows)) - 1 and len({row[alike] for row in rows}) == 1:
        alike += 1
    assert common_tokens(token_MT, mask_MT) == alike


@pytest.fixture
def engine(new_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerFast) -> Callable[..., LocalEngine]:
    def new(architecture: str, **population: Any) -> LocalEngine:
        engine = LocalEngine(
            new_model(architecture),
            tokenizer,
            population=PopulationConfig(**population),
            parameters=ParametersConfig(frozen=("*embed*", "*wte*", "*wpe*", "*.r_k", "*g_norm*", "*pre_norm*")),
            choice=for_any,
        )
        engine.model.generation_config.eos_token_id = ENDS
        return engine

    return new


def read(engine: LocalEngine, prompts: Sequence[str], population: Population | None) -> tuple[Any, int]:
    """The answers, and how many tokens the model read for them."""
    tokens = 0

    def count(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        nonlocal tokens
        tokens += kwargs["input_ids"].numel()

    handle = engine.model.register_forward_pre_hook(count, with_kwargs=True)
    answers = engine.generate(prompts, SAMPLING, population)
    handle.remove()
    return answers, tokens


@pytest.mark.parametrize("antithetic", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "gemma2", "rwkv7"])
def test_members_answer_as_if_each_row_was_read_apart(
    engine: Callable[..., LocalEngine], architecture: str, antithetic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"size": 6, "sigma": 0.05, "antithetic": antithetic}
    subject = engine(architecture, **config)
    for population in (Population(3, 0, PopulationConfig(**config)), None):
        answers, tokens = read(subject, PROMPTS, population)
        with monkeypatch.context() as patch:
            patch.setattr(eager, "LEAST", 10**9)
            apart, more = read(subject, PROMPTS, population)
        assert answers == apart
        saved = (len(COMMON) - 8) * (6 * 3 if population else 3)  # some characters are one token together
        assert (more - tokens > saved) == (architecture not in ("gemma2", "rwkv7"))  # a window, a state of its own


def test_one_prompt_of_each_member_is_read_whole(engine: Callable[..., LocalEngine]) -> None:
    config = PopulationConfig(size=6, sigma=0.05)
    _, tokens = read(engine("llama", size=6), PROMPTS[:1], Population(3, 0, config))
    assert tokens >= 6 * (len(COMMON) - 8)
