"""Grafts: parts of a trained model in the base model, one after the other."""

import torch

from benchmarks.grafts import grafted, group_of
from eggroll_rl.config import load_recipe
from eggroll_rl.models.loading import load_model


def test_each_part_is_taken_and_given_back() -> None:
    """A model whose head is zero answers nothing right, and what does not differ changes nothing."""
    recipe = load_recipe("countdown_tiny", ["sampling.max_new_tokens=64", "evaluation.max_new_tokens=null"])
    trained = {name: tensor.detach().clone() for name, tensor in load_model(recipe.model)[0].named_parameters()}
    trained["lm_head.weight"].zero_()
    with torch.no_grad():
        accuracy = dict(grafted(recipe, trained, n=32))
    assert accuracy["the head"] == accuracy["all"] == accuracy["all but vectors"] == 0
    assert accuracy["nothing"] == accuracy["vectors"] == accuracy["all but the head"] > 0


def test_groups() -> None:
    assert group_of("model.layers.0.attn.r_k", torch.zeros(3, 32)) == "vectors"
    assert group_of("model.layers.0.attn.x_r", torch.zeros(1, 1, 96)) == "vectors"
    assert group_of("model.layers.0.ffn.key.weight", torch.zeros(8, 4)) == "the layers' matrices"
