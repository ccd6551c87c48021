"""Which parameters evolve: the order of the lists, and the mistakes that are refused."""

import pytest

from eggroll_rl.config import ParametersConfig
from eggroll_rl.es import parameters as parameters_module
from eggroll_rl.es.parameters import select
from eggroll_rl.system.errors import UsageError

SHAPES = {
    "model.embed_tokens.weight": (100, 8),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.self_attn.q_proj.bias": (8,),
    "model.layers.0.conv.weight": (8, 1, 4),
    "model.norm.weight": (8,),
    "lm_head.weight": (100, 8),
}


def kinds(**lists):
    return {parameter.name: parameter.kind for parameter in select(SHAPES, ParametersConfig(**lists))}


def test_by_default_the_matrices_between_embedding_and_head_evolve():
    assert kinds() == {"model.layers.0.self_attn.q_proj.weight": "lowrank"}


def test_frozen_wins_over_dense_and_dense_over_lowrank():
    assert kinds(frozen=("*embed*", "lm_head*"), dense=("*weight",), lowrank=("*",)) == {
        "model.layers.0.self_attn.q_proj.weight": "dense",
        "model.layers.0.conv.weight": "dense",
        "model.norm.weight": "dense",
    }


def test_vectors_and_convolutions_that_match_lowrank_alone_stay():
    assert kinds(frozen=("*embed*", "lm_head*")) == {"model.layers.0.self_attn.q_proj.weight": "lowrank"}


def test_the_models_order_is_kept():
    assert list(kinds(frozen=(), dense=("*norm*", "*bias"))) == [
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.q_proj.bias",
        "model.norm.weight",
        "lm_head.weight",
    ]


def test_a_dense_glob_that_matches_nothing_is_refused():
    with pytest.raises(UsageError, match=r"parameters.dense '\*baias' matches nothing; the model has model.embed"):
        kinds(dense=("*baias",))


def test_a_dense_glob_behind_a_frozen_one_is_refused():
    with pytest.raises(UsageError, match=r"'\*norm\*' matches only frozen parameters: .* parameters.frozen"):
        kinds(dense=("*norm*",))


def test_nothing_to_evolve_is_refused():
    with pytest.raises(UsageError, match=r"no parameter evolves: .*'\*k_proj\*'.* leave none of model.embed_tokens"):
        kinds(lowrank=("*k_proj*",))


def test_two_parameters_on_one_noise_stream_are_refused(monkeypatch):
    monkeypatch.setattr(parameters_module, "parameter_id", lambda name: 7)
    with pytest.raises(
        UsageError, match=r"'model.embed_tokens.weight' and 'model.layers.0.self_attn.q_proj.weight' hash"
    ):
        kinds(frozen=())
