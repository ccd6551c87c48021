"""The accounts of a generation, against the count of a run's operations and against sizes that are known."""

import pytest
from transformers import LlamaConfig

from benchmarks.accounts import Device, Generation, Part, of_config, parts, sizes
from eggroll_rl.comparison.flops import Work, flops
from eggroll_rl.config import load_recipe
from eggroll_rl.models.blueprint import inspect


@pytest.mark.parametrize("model", ["embedded:rwkv7-countdown", "embedded:llama-countdown"])
def test_operations_are_those_that_a_comparison_counts(model: str) -> None:
    recipe = load_recipe("countdown_tiny", [f"model={model}", "engine.name=local", "population.size=64"])
    generation = Generation(members=64, prompts=8, prompt=0, tokens=50, rows=100)
    counted = sum(part.flops for part in parts(sizes(inspect(recipe), 4), generation))
    prompts = flops("eggroll", recipe, Work(0, 64 * 8, 0))
    assert counted == pytest.approx(flops("eggroll", recipe, Work(1, 64 * 8, 64 * 8 * 50)) - prompts)


def test_bytes_of_a_model_that_fits_on_paper() -> None:
    config = LlamaConfig(
        vocab_size=10, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=False,
    )  # fmt: skip
    model = of_config(config)
    layer = 2 * 8 * 8 + 2 * 8 * 4 + 3 * 8 * 16
    assert model.multiplied == layer + 8 * 10
    assert model.memory == 2 * 4 * 2  # a key and a value of one head of 4, in bfloat16
    found = {part.name: part for part in parts(model, Generation(members=8, prompts=1, prompt=5, tokens=10, rows=4))}
    assert found["products with the weights"].bytes == 2 * 11 * model.multiplied * 2  # two batches, 11 steps each
    assert found["the members' own products"].bytes == 2 * 11 * 2 * model.edges * 2  # of two pairs each
    assert found["states, keys and values"].bytes == 8 * model.memory * sum(5 + made + 0.5 for made in range(10))


def test_a_part_is_bound_by_what_takes_longer() -> None:
    device = Device("", flops=10.0, bytes=2.0)
    assert (Part("", 30.0, 2.0).seconds(device), Part("", 30.0, 2.0).bound(device)) == (3.0, "operations")
    assert (Part("", 30.0, 8.0).seconds(device), Part("", 30.0, 8.0).bound(device)) == (4.0, "memory")
