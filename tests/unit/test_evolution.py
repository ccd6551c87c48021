"""Ask and tell: all members in one pass, and a module that learns."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.func import functional_call

import eggroll_rl
from eggroll_rl import Evolution
from eggroll_rl.es.layers import materialized_state
from eggroll_rl.es.noise import Noise
from eggroll_rl.es.parameters import EvolvedParameter
from eggroll_rl.system.errors import UsageError

XOR = Path(__file__).parents[2] / "examples" / "xor.py"


class TwoHeads(nn.Module):
    """Takes a keyword tensor and a setting, returns a dictionary with a tuple."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 4), nn.Linear(3, 5, bias=False)

    def forward(self, x, *, mask, power=1):
        if power > 2:
            raise ArithmeticError
        return {"heads": (self.left(x) * mask, self.right(x) ** power), "power": power}


@pytest.mark.parametrize("antithetic", [True, False])
def test_ask_runs_every_member_on_the_whole_batch(antithetic):
    module = TwoHeads()
    evolution = Evolution(module, population=6, rank=2, sigma=0.3, seed=9, antithetic=antithetic)
    x, mask = torch.randn(7, 2, 3), torch.rand(7, 1, 1)
    with evolution.ask() as population:
        output = module(x, mask=mask, power=2)
        single = module(x[:1], mask=mask[:1])  # another batch size in the same generation
    assert output["power"] == 2
    evolved = [
        EvolvedParameter("left.weight", (4, 3), "lowrank"),
        EvolvedParameter("left.bias", (4,), "dense"),
        EvolvedParameter("right.weight", (5, 3), "lowrank"),
    ]
    for member in range(6):
        state = materialized_state(dict(module.named_parameters()), evolved, Noise(9, rank=2), population, member)
        expected = functional_call(module, state, (x,), {"mask": mask, "power": 2})
        torch.testing.assert_close([head[member] for head in output["heads"]], list(expected["heads"]))
        torch.testing.assert_close(single["heads"][0][member], expected["heads"][0][:1])


def test_the_module_is_itself_after_ask_even_if_its_forward_failed():
    module, x, mask = TwoHeads(), torch.randn(4, 3), torch.ones(4, 1)
    evolution = Evolution(module, population=4, sigma=0.3)
    expected = module(x, mask=mask)["heads"]
    with evolution.ask():
        population_output = module(x, mask=mask)["heads"][0]
        with pytest.raises(ArithmeticError):
            module(x, mask=mask, power=3)
    assert population_output.shape == (4, 4, 4)
    assert not population_output.requires_grad
    assert torch.equal(module(x, mask=mask)["heads"][0], expected[0])


def test_generations_differ_and_runs_repeat():
    def run(seed):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(3, 2))
        evolution = Evolution(module, population=8, sigma=0.1, lr=0.1, seed=seed)
        outputs = []
        for _ in range(3):
            with evolution.ask():
                y_NBO = module(torch.ones(1, 3))
            outputs.append(y_NBO - module(torch.ones(1, 3)).detach())
            evolution.tell(y_NBO.sum((1, 2)))
        return outputs, module[0].weight.detach()

    outputs, weight = run(4)
    assert not torch.allclose(outputs[0], outputs[1], atol=1e-3)
    assert torch.equal(run(4)[1], weight)
    assert not torch.equal(run(5)[1], weight)


def test_frozen_parameters_stay_and_tell_returns_the_rms_of_the_rest():
    module = TwoHeads()
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    evolution = Evolution(module, population=8, optimizer="sgd", lr=0.1, frozen=("right.*", "*.bias"))
    with evolution.ask():
        left = module(torch.randn(2, 3), mask=torch.ones(2, 1))["heads"][0]
    rms = evolution.tell(left.sum(2))
    after = dict(module.named_parameters())
    assert torch.equal(after["right.weight"], before["right.weight"])
    assert torch.equal(after["left.bias"], before["left.bias"])
    assert rms == pytest.approx((after["left.weight"] - before["left.weight"]).square().mean().sqrt().item(), rel=1e-4)
    assert rms > 0


def test_tell_without_ask_is_refused():
    with pytest.raises(UsageError, match="tell before ask"):
        Evolution(nn.Linear(2, 2), population=4).tell([1.0, 2.0, 3.0, 4.0])


@pytest.mark.parametrize("fitness", [[1.0, 2.0, 3.0], torch.ones(4, 2, 2), torch.tensor(1.0)])
def test_a_wrong_number_of_fitness_values_is_refused(fitness):
    evolution = Evolution(nn.Linear(2, 2), population=4)
    with evolution.ask():
        pass
    with pytest.raises(UsageError, match="for 4 members"):
        evolution.tell(fitness)


def test_values_out_of_range_are_refused():
    with pytest.raises(ValueError, match="size 5 is odd"):
        Evolution(nn.Linear(2, 2), population=5)
    with pytest.raises(UsageError, match="antithetic: true"):
        Evolution(nn.Linear(2, 2), population=4, fitness="sign", antithetic=False)


def test_the_package_exports_it_and_nothing_by_accident():
    assert eggroll_rl.Evolution is Evolution
    with pytest.raises(AttributeError, match="no attribute 'Evolutoin'"):
        _ = eggroll_rl.Evolutoin


@pytest.mark.parametrize("seed", range(5))
def test_xor_is_learnt(seed):
    specification = importlib.util.spec_from_file_location("xor", XOR)
    xor = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(xor)
    assert xor.train(seed)[-1] < 0.005


class Counter(nn.Module):
    """Evolves nothing: its one parameter is an integer."""

    def __init__(self):
        super().__init__()
        self.count = nn.Parameter(torch.tensor(3), requires_grad=False)


@pytest.mark.parametrize("module", [nn.ReLU(), Counter()])
def test_a_module_without_parameters_that_can_evolve_is_refused(module):
    with pytest.raises(UsageError, match=rf"this {type(module).__name__} has no parameters"):
        Evolution(module)


class Lookup(nn.Module):
    """Integers in, and an integer among the parameters."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor([1, 2]), requires_grad=False)
        self.table, self.head = nn.Embedding(5, 4), nn.Linear(4, 1)

    def forward(self, tokens):
        return self.head(self.table(tokens))


def test_integers_go_in_and_stay_as_they_are():
    module = Lookup()
    evolution = Evolution(module, population=4, sigma=0.3, frozen=("table.*",))
    with evolution.ask():
        y_NB = module(torch.tensor([0, 3]))[..., 0]
    assert y_NB.shape == (4, 2)
    evolution.tell(y_NB.mean(1))
    assert module.shift.tolist() == [1, 2]


@pytest.mark.parametrize("inputs", [(), (3.0,), (torch.tensor(1.0),), (torch.zeros(2, 3), torch.zeros(4, 3))])
def test_inputs_without_one_batch_are_refused(inputs):
    module = nn.Sequential(nn.Linear(3, 1))
    evolution = Evolution(module, population=4)
    with evolution.ask(), pytest.raises(UsageError, match="share a leading axis, the batch"):
        module(*inputs)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_fitness_that_is_not_finite_is_refused_by_member(bad):
    module = nn.Linear(3, 1)
    evolution, before = Evolution(module, population=4), module.weight.clone()
    with evolution.ask():
        module(torch.ones(1, 3))
    with pytest.raises(UsageError, match="of 2 members is not finite, of member 1 first"):
        evolution.tell([0.0, bad, 1.0, bad])
    assert torch.equal(module.weight, before)
    evolution.tell([0.0, -1.0, 1.0, -1.0])  # the same members, told rightly
    assert not torch.equal(module.weight, before)


def test_a_step_that_overflows_leaves_the_module_as_it_was():
    module = nn.Linear(3, 2)
    nn.init.constant_(module.weight, 1e36)
    nn.init.constant_(module.bias, -1e36)
    evolution = Evolution(module, population=4, optimizer="sgd", lr=1e3, weight_decay=10)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with evolution.ask():
        module(torch.ones(1, 3))
    with pytest.raises(UsageError, match=r"the step overflows in weight, bias: lower optimizer\.lr"):
        evolution.tell([0.0, 1.0, 2.0, 3.0])
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
