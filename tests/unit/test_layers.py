"""One batched pass for all members, against each member's materialised module run alone."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.pytorch_utils import Conv1D

from eggroll_rl.config import ParametersConfig, PopulationConfig
from eggroll_rl.es.layers import PopulationLayers, materialized_state
from eggroll_rl.es.noise import Noise
from eggroll_rl.es.parameters import EvolvedParameter, select
from eggroll_rl.es.population import Population
from eggroll_rl.system.errors import UsageError

PROMPTS = 2


def make_module():
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(5, 6),
        nn.LayerNorm(6),
        Conv1D(8, 6),
        nn.GELU(),
        LlamaRMSNorm(8),
        nn.Linear(8, 8, bias=False),
        GemmaRMSNorm(8),
        nn.RMSNorm(8, eps=1e-5),
        nn.Linear(8, 3),
    )
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def evolved_of(module, **lists):
    config = ParametersConfig(**({"frozen": (), "dense": ("*.bias", "1.*", "4.*", "6.*", "7.*")} | lists))
    return select({name: p.shape for name, p in module.named_parameters()}, config)


def members_of_rows(population, member_M, dtype=torch.float32):
    sign_M = torch.tensor([population.sign(int(i)) for i in member_M], dtype=dtype)
    pair_M = torch.tensor([population.pair(int(i)) for i in member_M])
    return sign_M * population.scale, pair_M, sign_M * population.config.sigma


def one_by_one(module, evolved, noise, population, x_M, member_M):
    parameters = dict(module.named_parameters())
    states = [materialized_state(parameters, evolved, noise, population, i) for i in range(population.size)]
    return torch.cat([functional_call(module, states[i], x[None]) for x, i in zip(x_M, member_M, strict=True)])


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("antithetic", [True, False])
@pytest.mark.parametrize("tokens", [(), (4,)])
@pytest.mark.parametrize("ragged", [False, True])
@torch.no_grad()
def test_rows_equal_their_members_module(rank, antithetic, tokens, ragged):
    module = make_module()
    evolved = evolved_of(module)
    population = Population(1, 2, PopulationConfig(size=6, rank=rank, sigma=0.1, antithetic=antithetic))
    noise = Noise(1, rank=rank)
    member_M = torch.tensor([5, 0, 3, 3, 1]) if ragged else torch.arange(6).repeat_interleave(PROMPTS)
    coefficient_M, pair_M, dense_M = members_of_rows(population, member_M)
    x_M = torch.randn(len(member_M), *tokens, 5)
    layers = PopulationLayers(module, evolved)
    factors = noise.draw(evolved, population.epoch, range(population.pairs))
    with layers.members(factors, coefficient_M, pair_M if ragged else None, dense_M):
        batched = module(x_M)
    layers.remove()
    torch.testing.assert_close(
        batched, one_by_one(module, evolved, noise, population, x_M, member_M), rtol=1e-4, atol=1e-4
    )
    assert not torch.allclose(batched, module(x_M), atol=1e-2)


@pytest.mark.parametrize("ragged", [False, True])
@torch.no_grad()
def test_dense_matrices_equal_their_members_module(ragged):
    module = make_module()
    evolved = evolved_of(module, dense=("*",))
    population, noise = Population(1, 0, PopulationConfig(size=4, sigma=0.1)), Noise(1)
    member_M = torch.tensor([2, 1, 1]) if ragged else torch.arange(4).repeat_interleave(PROMPTS)
    coefficient_M, pair_M, dense_M = members_of_rows(population, member_M)
    x_M = torch.randn(len(member_M), 3, 5)
    layers = PopulationLayers(module, evolved)
    with layers.members(noise.draw(evolved, 0, range(2)), coefficient_M, pair_M if ragged else None, dense_M):
        batched = module(x_M)
    layers.remove()
    torch.testing.assert_close(
        batched, one_by_one(module, evolved, noise, population, x_M, member_M), rtol=1e-4, atol=1e-4
    )


@torch.no_grad()
def test_outputs_that_are_not_contiguous_are_perturbed_too():
    module = nn.Sequential(LlamaRMSNorm(4))
    evolved = [EvolvedParameter("0.weight", (4,), "dense")]
    population, noise = Population(1, 0, PopulationConfig(size=4, sigma=0.1)), Noise(1)
    coefficient_M, _, dense_M = members_of_rows(population, torch.arange(4))
    x_M = torch.randn(4, 3, 2, 4).transpose(1, 2)
    assert not module(x_M).is_contiguous()
    layers = PopulationLayers(module, evolved)
    with layers.members(noise.draw(evolved, 0, range(2)), coefficient_M, None, dense_M):
        batched = module(x_M)
    layers.remove()
    torch.testing.assert_close(batched, one_by_one(module, evolved, noise, population, x_M, range(4)))


@torch.no_grad()
def test_outside_members_the_module_is_itself():
    module, x = make_module(), torch.randn(4, 5)
    expected = module(x)
    evolved = evolved_of(module)
    layers = PopulationLayers(module, evolved)
    factors, one_M = Noise(0).draw(evolved, 0, range(2)), torch.ones(4)
    with pytest.raises(KeyboardInterrupt), layers.members(factors, one_M, None, one_M):
        assert not torch.allclose(module(x), expected)
        raise KeyboardInterrupt
    assert torch.equal(module(x), expected)
    layers.remove()
    with layers.members(factors, one_M, None, one_M):
        assert torch.equal(module(x), expected)


def lowrank(name, *shape):
    return EvolvedParameter(name, shape, "lowrank")


class Int8Linear(nn.Linear):
    """Stands for a quantised layer, which derives from nn.Linear and computes something else."""


@pytest.mark.parametrize(
    ("module", "parameter", "message"),
    [
        (nn.Embedding(9, 4), lowrank("0.weight", 9, 4), r"0.weight \(lowrank, in Embedding\).* parameters.frozen"),
        (nn.Conv1d(4, 4, 2), EvolvedParameter("0.weight", (4, 4, 2), "dense"), "in Conv1d"),
        (nn.MultiheadAttention(4, 2), lowrank("0.out_proj.weight", 4, 4), "NonDynamicallyQuantizableLinear"),
        (nn.MultiheadAttention(4, 2), lowrank("0.in_proj_weight", 12, 4), "in MultiheadAttention"),
        (Int8Linear(4, 4), lowrank("0.weight", 4, 4), "in Int8Linear"),
    ],
)
def test_layers_without_a_known_perturbation_are_refused(module, parameter, message):
    with pytest.raises(UsageError, match=message):
        PopulationLayers(nn.Sequential(module), [parameter])


def test_tied_tensors_are_refused_by_both_names():
    module = nn.ModuleDict({"embed": nn.Embedding(9, 4), "head": nn.Linear(4, 9, bias=False)})
    module["head"].weight = module["embed"].weight
    with pytest.raises(UsageError, match=r"embed.weight and head.weight are one tied tensor.*parameters.frozen"):
        PopulationLayers(module, [lowrank("head.weight", 9, 4)])


def test_a_layer_that_regroups_its_rows_is_refused():
    module = nn.Sequential(nn.Flatten(0, 1), nn.Linear(5, 3, bias=False))
    evolved = [lowrank("1.weight", 3, 5)]
    layers = PopulationLayers(module, evolved)
    with (
        layers.members(Noise(0).draw(evolved, 0, range(2)), torch.ones(4)),
        pytest.raises(UsageError, match=r"1 \(Linear\) received 28 rows where the population has 4.*1.weight"),
    ):
        module(torch.randn(4, 7, 5))


def test_dense_parameters_want_their_own_coefficient():
    module = make_module()
    evolved = evolved_of(module)
    with (
        pytest.raises(ValueError, match="give dense_coefficient_M"),
        PopulationLayers(module, evolved).members(Noise(0).draw(evolved, 0, range(2)), torch.ones(4)),
    ):
        pass
