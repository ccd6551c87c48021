"""EGG's arithmetic at its edges, and the model behind transformers' doors. Against the public program:
``tests/conformance``."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from eggroll_rl.es.integers import RankOne
from eggroll_rl.models.egg.arithmetic import Weights, gated, log_likelihood, log_steps, norm, powers, read
from eggroll_rl.models.egg.model import EggConfig, new_model
from eggroll_rl.models.egg.saturation import saturation
from eggroll_rl.models.egg.tokenizer import byte_tokenizer
from eggroll_rl.models.loading import load_model
from eggroll_rl.system.errors import UsageError

INT8 = st.one_of(st.integers(-127, 127), st.sampled_from([-127, -1, 0, 1, 127]))


def int8s(*shape):
    size = math.prod(shape)
    return st.lists(INT8, min_size=size, max_size=size).map(lambda values: torch.tensor(values).view(shape).int())


def clip(value):
    return max(-127, min(127, value))


@given(st.data(), st.sampled_from([1, 4, 16]), st.sampled_from([1, 3]), st.integers(0, 7))
def test_a_product_is_the_formula(data, size_I, size_O, shift):
    x, W = data.draw(int8s(2, size_I)), data.draw(int8s(size_O, size_I))
    A, B = data.draw(int8s(2, size_O)), data.draw(int8s(2, size_I))
    expected = []
    for m in range(2):
        inner = sum(int(x[m, i]) * int(B[m, i]) for i in range(size_I))
        for o in range(size_O):
            whole = sum(int(x[m, i]) * int(W[o, i]) for i in range(size_I))
            expected.append(clip((whole + (inner * int(A[m, o]) >> 4 + shift)) // (16 * math.isqrt(size_I))))
    assert Weights({"W": W}, {"W": RankOne(A, B)}, shift).product("W", x).flatten().tolist() == expected


def test_the_largest_perturbation_fits_its_integers():
    x = torch.full((1, 1024), 127)
    noise = RankOne(torch.tensor([[127, -127]]), torch.full((1, 1024), 127))
    weights = Weights({"W": torch.zeros(2, 1024)}, {"W": noise}, 16)
    inner = 1024 * 127**3
    assert weights.product("W", x.int()).tolist() == [[(inner >> 20) // 512, (-inner >> 20) // 512]]
    assert Weights({"W": torch.zeros(2, 1024)}, {"W": noise}, 0).product("W", x.int()).tolist() == [[127, -127]]


@given(int8s(3, 4), int8s(4))
def test_a_norm_is_the_formula(x, weight):
    expected = [
        [clip(int(a) * int(w) // max(max(int(row.abs().sum()), 1) // 4, 1)) for a, w in zip(row, weight, strict=True)]
        for row in x
    ]
    assert norm(x, weight).tolist() == expected


@given(st.data(), st.sampled_from([-127, 0, 127]))
def test_a_state_stays_in_its_range(data, bias):
    names = {name: data.draw(int8s(4, 4)) for name in ("Wf", "Uf", "Wh", "Uh")}
    weights = Weights(names | {"bf": torch.full((4,), bias), "bh": torch.full((4,), -bias)})
    state = gated(weights, "", data.draw(int8s(2, 4)), data.draw(int8s(2, 4)))
    assert state.abs().max() <= 127


def test_tables_are_the_formulas():
    assert powers().tolist() == [int(16 * 2 ** (i / 16)) for i in range(256)]
    assert log_steps()[:17].tolist() == [math.ceil(16 * 2 ** (i / 16)) for i in range(17)]
    sums = [16, 17, 4096, 10**6, 2**28 - 1, 2**28]
    found = torch.searchsorted(log_steps(), torch.tensor(sums), right=True) - 1
    assert found.tolist() == [int(16 * math.log2(k / 16)) for k in sums]
    assert 256 * int(powers()[-1]) < 2**28


@given(st.lists(INT8, min_size=256, max_size=256), st.integers(0, 255))
def test_likelihoods_are_those_of_a_softmax_of_base_two(logits, byte):
    expected = logits[byte] - 16 * math.log2(sum(2 ** (logit / 16) for logit in logits))
    found = log_likelihood(torch.tensor([logits]), torch.tensor([byte]))
    assert abs(int(found) - expected) < 1.01 + 16 * math.log2(17 / 16)  # powers lose up to 1 of 17, the logarithm 1
    assert int(found) <= 0


@pytest.fixture(scope="module")
def model():
    return new_model(EggConfig(16, 2), seed=1)


def test_a_new_model_is_the_seeds(model):
    same, other = new_model(EggConfig(16, 2), seed=1), new_model(EggConfig(16, 2), seed=2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))
    assert not torch.equal(model.emb, other.emb)
    assert model.layers[1].W2.float().std() == pytest.approx(16, rel=0.1)
    assert model.ln_out.unique().tolist() == [16] and model.layers[0].bf.unique().tolist() == [0]
    D, L = 256, 6
    with torch.device("meta"):
        published = AutoModelForCausalLM.from_config(EggConfig(D, L))
    assert sum(p.numel() for p in published.parameters()) == 513 * D + L * (4 * D + 12 * D**2) == 4_856_064


def test_saved_and_loaded_by_transformers(model, tmp_path):
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    loaded, tokenizer = load_model(str(tmp_path))
    assert loaded.config.num_hidden_layers == 2
    for (name, mine), (other, theirs) in zip(model.named_parameters(), loaded.named_parameters(), strict=True):
        assert name == other and theirs.dtype == torch.int8 and torch.equal(mine, theirs)
    assert tokenizer("a").input_ids == [0, 97]


def test_logits_are_what_bits_per_byte_measures(model):
    data = torch.randint(1, 256, (2, 20), generator=torch.Generator().manual_seed(0))
    data[0, 9] = 0
    nats = torch.log_softmax(model(data).logits[:, :-1].double(), -1).gather(2, data[:, 1:, None]).mean()
    assert model.bits_per_byte(data) == pytest.approx(-float(nats) / math.log(2), abs=2 / 16)


@pytest.mark.parametrize("sampled", [False, True])
def test_generated_text_is_the_same_from_its_state_as_from_the_beginning(model, sampled):
    inputs = byte_tokenizer()(["def", "a longer beginning: "], return_tensors="pt", padding=True)
    outputs = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        outputs.append(
            model.generate(**inputs, min_new_tokens=12, max_new_tokens=12, do_sample=sampled, use_cache=use_cache)
        )
    assert torch.equal(*outputs)


@pytest.mark.parametrize("document", [True, False])
def test_padding_leaves_no_trace(model, document):
    """Not even where a prompt is no beginning of a document."""
    tokenizer = byte_tokenizer()
    options = {"return_tensors": "pt", "add_special_tokens": document}
    alone, padded = tokenizer("def", **options), tokenizer(["def", "a longer beginning: "], padding=True, **options)
    expected = model.generate(**alone, min_new_tokens=12, max_new_tokens=12, do_sample=False)[0, -12:]
    assert torch.equal(
        model.generate(**padded, min_new_tokens=12, max_new_tokens=12, do_sample=False)[0, -12:], expected
    )


@given(st.text())
def test_the_tokenizer_is_utf8(text):
    tokenizer = byte_tokenizer()
    ids = tokenizer(text).input_ids
    assert ids == [0, *text.encode()]
    assert tokenizer.decode(ids[1:]) == text


def test_byte_zero_forgets(model):
    first = torch.tensor([[104, 105, 0, 97, 98]])
    weights = Weights(dict(model.named_parameters()))
    _, after_document = read(weights, first, model.new_state(1))
    _, alone = read(weights, first[:, 2:], model.new_state(1))
    assert torch.equal(after_document, alone)


@pytest.mark.parametrize(("width", "layers"), [(0, 1), (1, 1), (32, 2), (100, 1), (-4, 1), (1024, 1), (16, 0)])
def test_geometry_is_checked(width, layers):
    with pytest.raises(UsageError, match="choose"):
        EggConfig(width, layers)


def test_saturation_is_what_the_products_show():
    model = new_model(EggConfig(16, 1), 3)
    text = torch.randint(0, 256, (11, 40), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    model.layers[0].W1[:5] = 127
    found = saturation(model, text)
    assert found.weights["layers.0.W1"] == pytest.approx(5 / 64, abs=0.01) and found.weights["emb"] < 0.01
    weights, seen = Weights(dict(model.named_parameters())), {}
    product = weights.product
    weights.product = lambda name, x: seen.setdefault(name, []).append(product(name, x)) or seen[name][-1]
    read(weights, text[:8, :33], model.new_state(8))
    expected = {name: (torch.stack(outputs).abs() == 127).double().mean().item() for name, outputs in seen.items()}
    assert found.products == pytest.approx(expected) and max(expected.values()) > 0.03
