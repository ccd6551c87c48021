"""Real vLLM engines and the transformers engines that they must agree with; one of each model for all tests, for what
takes time is to start one."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from torch import Tensor

from eggroll_rl.config import Recipe
from eggroll_rl.engines.local.engine import LocalEngine
from eggroll_rl.engines.vllm.engine import VLLMEngine

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

SLOTS, MEMBERS = 8, 16  # two waves
LONG = {"max_position_embeddings": 768}  # room for prompts of several cache blocks, which hold 128 tokens each on a CPU
QWEN3 = {"hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 32, **LONG}


class Engines(NamedTuple):
    """One recipe in both engines, with the base model's state to go back to."""

    recipe: Recipe
    vllm: VLLMEngine
    transformers: LocalEngine
    base: dict[str, Tensor]


def recipe_of(model: str, **changes: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "model": model,
            "engine": {"name": "vllm", "vllm": {"slots": SLOTS, "kv_cache_gib": 0.5}},
            "rewards": [{"fn": "eggroll_rl.rewards.countdown:countdown"}],
            "population": {"size": MEMBERS, "sigma": 0.02},
            "parameters": {"frozen": ["*embed*", "*norm*"]},
            "optimizer": {"name": "adam", "average": 0.5, "anchor": 0.1},
            "seed": 3,
        }
        | changes
    )


def both(recipe: Recipe) -> Engines:
    transformers = LocalEngine.from_recipe(recipe)
    base = {key: tensor.clone() for key, tensor in transformers.state_dict().items()}
    return Engines(recipe, VLLMEngine(recipe), transformers, base)


@pytest.fixture(scope="session")
def qwen3_folder(
    tmp_path_factory: pytest.TempPathFactory,
    new_model: "Callable[..., PreTrainedModel]",
    tokenizer: "PreTrainedTokenizerFast",
) -> Path:
    """Norms of queries and keys, heads wider than hidden / heads, one key and value head for four of queries."""
    folder = tmp_path_factory.mktemp("qwen3")
    new_model("qwen3", **QWEN3).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def of_llama() -> Iterator[Engines]:
    engines = both(recipe_of("embedded:llama-countdown"))
    yield engines
    engines.vllm.close()


@pytest.fixture(scope="session")
def of_qwen3(qwen3_folder: Path) -> Iterator[Engines]:
    """Rank 3, which vLLM pads to 8; values do not evolve, though they are fused with queries and keys that do."""
    population = {"size": MEMBERS, "sigma": 0.02, "rank": 3, "antithetic": False}
    parameters = {"frozen": ["*embed*", "*norm*", "*v_proj*"]}
    engines = both(recipe_of(str(qwen3_folder), population=population, parameters=parameters))
    yield engines
    engines.vllm.close()


@pytest.fixture(scope="session")
def of_rwkv7(model_folder: Callable[[str], Path]) -> Iterator[Engines]:
    """Fewer rows than requests; the loras evolve too, and the head."""
    engine = {"name": "vllm", "max_rows": 24, "vllm": {"slots": SLOTS, "kv_cache_gib": 0.25, "max_model_len": 512}}
    frozen = {"frozen": ["*embed*", "*norm*", "*.r_k"]}
    engines = both(recipe_of(str(model_folder("rwkv7")), engine=engine, parameters=frozen))
    yield engines
    engines.vllm.close()


@pytest.fixture(params=["of_llama", "of_qwen3", "of_rwkv7"])
def engines(request: pytest.FixtureRequest) -> Engines:
    """Both engines, with the weights of the base model."""
    found: Engines = request.getfixturevalue(request.param)
    return back_to_base(found)


def back_to_base(engines: Engines) -> Engines:
    for engine in (engines.vllm, engines.transformers):
        engine.load_state_dict(engines.base)
    return engines
