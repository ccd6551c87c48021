"""EGG against what its authors' public program computed: likelihoods, logits, states, fitness and updated weights, to
the last bit. ``data/*.npz`` hold two small models, their noise and what became of them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from eggroll_rl.es.integers import RankOne, least_votes, of_members, pair_fitness, stepped, votes
from eggroll_rl.models.egg.arithmetic import Weights, log_likelihood, read, step
from eggroll_rl.models.egg.device import DeviceEgg
from eggroll_rl.models.egg.kernel import Draw, EggKernel, supported

OURS = {
    "ln1": "ln1/weight",
    "ln2": "ln2/weight",
    "W1": "mlp/0/weight",
    "W2": "mlp/1/weight",
    **{name: f"att/{name}" for name in ("Wf", "Uf", "Wh", "Uh", "bf", "bh")},
}
OUTSIDE = {"emb": "emb", "head": "head", "ln_out": "ln_out/weight"}


class Case:
    """One file: ``parameters``, ``updated`` and ``noise`` of all pairs under our names, the rest as it is there."""

    def __init__(self, path):
        self.arrays = dict(np.load(path, allow_pickle=False))
        self.width, self.layers, self.members, self.tokens, self.shift, self.threshold = self.arrays["meta"].tolist()
        places = {name: (theirs, 0) for name, theirs in OUTSIDE.items()}
        for layer in range(self.layers):
            places |= {f"layers.{layer}.{name}": (f"blocks/{theirs}", layer) for name, theirs in OURS.items()}
        self.parameters = {name: self._weight("params", *place) for name, place in places.items()}
        self.updated = {name: self._weight("updated", *place) for name, place in places.items()}
        self.noise = {name: self._noise(*place) for name, place in places.items()}
        self.bytes_NT = torch.from_numpy(self.arrays["tokens"])

    def __getitem__(self, name):
        return torch.from_numpy(self.arrays[name])

    def _weight(self, kind, theirs, layer):
        stacked = self[f"{kind}/{theirs}"]
        return stacked[layer] if theirs.startswith("blocks") else stacked

    def _noise(self, theirs, layer):
        def side(name):
            return torch.stack([self[f"noise/{theirs}/{layer}/{pair}/{name}"] for pair in range(self.members // 2)])

        return side("e") if f"noise/{theirs}/{layer}/0/e" in self.arrays else RankOne(side("A"), side("B"))


@pytest.fixture(params=["egg_d16", "egg_d64"])
def case(request):
    return Case(Path(__file__).parent / "data" / f"{request.param}.npz")


def test_the_unperturbed_model(case):
    streams = case["base_loglik"].shape[0]
    state = torch.zeros(streams, case.layers, case.width, dtype=torch.int8)
    weights = Weights(case.parameters)
    stream_MT = case.bytes_NT[: 2 * streams : 2].long()
    for token in range(case.tokens):
        logits, state = step(weights, stream_MT[:, token], state)
        assert torch.equal(logits, case["base_logits"][:, token].int())
        assert torch.equal(state, case["base_states"][:, token].int())
        assert torch.equal(log_likelihood(logits, stream_MT[:, token + 1]), case["base_loglik"][:, token])


def test_members(case):
    noise = of_members(case.noise, range(case.members))
    weights = Weights(case.parameters, noise, case.shift)
    state = torch.zeros(case.members, case.layers, case.width, dtype=torch.int8)
    likelihoods, before = read(weights, case.bytes_NT[:, :-1], state)
    logits, state = step(weights, case.bytes_NT[:, -2].long(), before)
    last = log_likelihood(logits, case.bytes_NT[:, -1].long())
    likelihoods = torch.cat([likelihoods, last[:, None]], dim=1)
    assert torch.equal(likelihoods, case["member_loglik"])
    assert torch.equal(logits, case["member_logits"].int())
    assert torch.equal(state, case["member_final_state"].int())
    assert torch.equal(pair_fitness(likelihoods.sum(1)), case["fitness"])


@pytest.mark.parametrize("products", [*supported(), "device"])
def test_populations(case, products):
    kernel = (
        DeviceEgg(case.parameters, case.layers)
        if products == "device"
        else EggKernel(case.parameters, case.width, case.layers, products)
    )
    state = torch.zeros(case.members, case.layers, case.width, dtype=torch.int8)
    draw = Draw(seed=0, epoch=0, shift=case.shift)
    members = range(case.members)
    readings = kernel.read(case.bytes_NT[::2].byte().contiguous(), state, members, 2, draw, case.noise, details=True)
    assert torch.equal(readings.likelihood_NT, case["member_loglik"].int())
    assert torch.equal(readings.logits_NV, case["member_logits"])
    assert torch.equal(state, case["member_final_state"])


def test_the_update(case):
    for name, parameter in case.parameters.items():
        counted = votes(case.noise[name], case["fitness"])
        after = stepped(parameter, counted, least_votes(case.threshold, case.members // 2))
        assert torch.equal(after, case.updated[name]), name
