"""bf16 weights on the CPU: close to fp32 with the same weights, and written from fp32 masters."""

import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from eggroll_rl.config import ParametersConfig, PopulationConfig, Recipe, SamplingConfig
from eggroll_rl.engines.local.choice import Choice, for_any, for_rwkv
from eggroll_rl.engines.local.engine import LocalEngine
from eggroll_rl.engines.local.fused_rwkv import FusedStep
from eggroll_rl.engines.local.rows import Rows
from eggroll_rl.es.layers import materialized_state
from eggroll_rl.es.population import Population
from eggroll_rl.es.update import Update

NewModel = Callable[..., PreTrainedModel]
KINDS = [(for_any, "llama"), (for_any, "rwkv7"), (for_rwkv, "rwkv7")]
PROMPTS = ("a", "12 + 34 =")


def engine_of(kind: Choice, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> LocalEngine:
    return LocalEngine(model.bfloat16(), tokenizer, seed=3, parameters=ParametersConfig(), choice=kind)


@pytest.mark.parametrize(("kind", "architecture"), KINDS)
@torch.inference_mode()
def test_members_are_close_to_their_own_model_in_fp32(
    kind: Choice, architecture: str, new_model: NewModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = engine_of(kind, new_model(architecture, 0.2), tokenizer)
    population = Population(3, 0, PopulationConfig(size=4, sigma=0.05))
    rows = Rows(range(4), [0] * 4, [[5, 9, 14, 20]], pad=0, length=4, device=torch.device("cpu"))
    ids_MT = rows.next_MT
    engine.decoder.begin(4, rows.capacity)
    logits_MV = engine.decoder.step(ids_MT, rows.mask_MT, engine._members(rows, population, range(4)))
    exact: Any = new_model(architecture, 0.2).bfloat16().float()
    base = dict(exact.named_parameters())
    for member in range(4):
        state = materialized_state(base, engine.evolved, engine.noise, population, member)
        expected = torch.func.functional_call(exact, state, ids_MT[:1]).logits[0, -1]
        error = (logits_MV[member].float() - expected).norm() / expected.norm()
        assert error < 0.05
        unperturbed = exact(ids_MT[:1]).logits[0, -1]
        assert (unperturbed - expected).norm() / expected.norm() > 4 * error


@pytest.mark.parametrize(("kind", "architecture"), KINDS)
def test_the_model_is_its_rounded_masters(
    kind: Choice, architecture: str, new_model: NewModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = engine_of(kind, new_model(architecture), tokenizer)
    population, sampling = Population(3, 0, PopulationConfig(size=4, sigma=0.05)), SamplingConfig(max_new_tokens=6)
    before = engine.generate(PROMPTS, sampling, population)
    assert len({answer.token_ids for row in before for answer in row}) > 2
    for _ in range(3):  # steps that alone would round away
        engine.apply(Update(population, (1.0, -0.5, 2.0, -1.0), lr=1e-5))
    named = dict(engine.model.named_parameters())
    for name, master in engine.learner.masters.items():
        assert master.dtype == torch.float32
        assert not torch.equal(master, named[name].float())
        assert torch.equal(named[name], master.bfloat16())


@torch.inference_mode()
def test_the_fused_step_rounds_nothing_but_the_products(new_model: NewModel) -> None:
    model: Any = new_model("rwkv7", 0.2).bfloat16()
    step, exact = FusedStep(model), FusedStep(new_model("rwkv7", 0.2).bfloat16().float())  # type: ignore[arg-type]
    state, other = step.new_state(3), exact.new_state(3)
    for token_M in torch.randint(150, (12, 3)):
        logits, expected = step(token_M, state, None), exact(token_M, other, None)
        assert logits.dtype == torch.float32
        assert (logits - expected).norm() / expected.norm() < 0.03
    assert state.wkv_BHKK[0] is not None
    assert state.wkv_BHKK[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"name": "transformers"}, "decode path: eager"),
        ({"name": "rwkv"}, r"decode path: fused C step \(.*, \d+ threads\)"),
        ({"name": "rwkv", "dtype": "bfloat16"}, r"decode path: fused C step \(.* threads, bf16 products\)"),
    ],
)
def test_the_engine_says_how_it_decodes(
    overrides: dict[str, Any], message: str, model_folder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    engine, rewards = {**overrides, "device": "cpu"}, [{"fn": "eggroll_rl.rewards.countdown:countdown"}]
    recipe = Recipe.model_validate({"model": str(model_folder("rwkv7")), "rewards": rewards, "engine": engine})
    with caplog.at_level(logging.INFO, "eggroll_rl"):
        LocalEngine.from_recipe(recipe)
    (record,) = [record for record in caplog.records if record.message.startswith("decode path")]
    assert re.fullmatch(message, record.message)
