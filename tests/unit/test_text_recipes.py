"""Recipes on text: what is wrong with one is said in a line, before anything is made; what they need is planned."""

import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eggroll_rl import grpo
from eggroll_rl.comparison.plan import Plan
from eggroll_rl.config import FitnessConfig, PopulationConfig, Recipe, load_recipe
from eggroll_rl.data.text import Streams
from eggroll_rl.engines import egg
from eggroll_rl.engines.egg import EggEngine
from eggroll_rl.engines.fleet.sharing import join_foretold, read_by_members
from eggroll_rl.es.fitness import fitness
from eggroll_rl.es.hashing import tensors_hash
from eggroll_rl.es.integers import moving_share, pair_fitness, threshold, threshold_for
from eggroll_rl.es.population import Population
from eggroll_rl.es.update import Update
from eggroll_rl.eval.evaluate import evaluate_model
from eggroll_rl.models.egg.model import EggConfig, new_model
from eggroll_rl.models.egg.tokenizer import byte_tokenizer
from eggroll_rl.planning.memory import plan
from eggroll_rl.runs.journal import Entry, Header, Journal
from eggroll_rl.system.errors import UsageError
from eggroll_rl.train import train

WRONG = {
    "model=egg:100x2": "model 'egg:100x2': hidden_size 100 is no power of four up to 256",
    "model=egg:1024x2": "hidden_size 1024 is no power of four up to 256: choose 4, 16, 64 or 256",
    "model=egg:64x0": "num_hidden_layers 0: choose 1 or more",
    "model=egg:64": "a new model is egg:WIDTHxLAYERS, as in egg:64x2",
    "model=egg:-4x2": "a new model is egg:WIDTHxLAYERS",
    "model=embedded:rwkv7-countdown": "runs EGG models, and embedded:rwkv7-countdown is a RWKV7ForCausalLM",
    "engine.name=local": "engine.name=local answers prompts, and reads no text: set engine.name=egg",
    "engine.name=vllm": "engine.name=vllm answers prompts, and reads no text",
    "optimizer={name: adam}": "optimizer.name=adam: the engine egg learns by votes",
    "optimizer.lr=0.1": "votes has no lr: drop optimizer.lr",
    "optimizer.average=0.9": "votes has no average: drop optimizer.average",
    "fitness.shaping=rank": "set fitness.shaping=sign",
    "population.sigma=0.05": "takes sigma from 1, 1/2, 1/4, ... 0.000244141, not 0.05",
    "population.final_sigma=0.03125": "drop population.final_sigma",
    "population.rank=2": "set population.rank=1",
    "population.noise=rademacher": "set population.noise=normal",
    "population.size=266290": "votes in 32 bits, which those of 266288 members are sure to fit, not of 266290: lower",
    "population.size=1023": "size 1023 is odd, and antithetic members come in pairs: take 1024",
    "engine.device=mps": "runs on a CPU or by CUDA, not mps: set engine.device=cpu",
    "engine.device=cuda:99": "engine.device=cuda:99: there is none here; take auto, or one of cpu",
    "weights=int8": "weights=int8: engine egg learns no such weights",
    "parameters.frozen=[]": "evolves every parameter of a model: drop parameters",
    "text.group=3": "text.group: 3 is odd",
    "text.group=6": "population.size 4096 does not divide into groups of text.group 6",
    "text.tokens=5000": "2048 streams of 5000 bytes need a corpus of 10240001, and it has",
    "text.test_split=test": "text.test_split='test' is of datasets, and 'python-docs' is none",
    "text.name=./absent.txt": "no text file or folder './absent.txt'",
    "sampling.temperature=0.0": "sampling of answers: drop one or the other",
    "rewards=[{fn: 'a:b'}]": "rewards of answers: drop one or the other",
    "data.prompts=8": "data of answers: drop one or the other",
    "evaluation.max_new_tokens=8": "evaluation.max_new_tokens of answers: drop one or the other",
    "evaluation.reward='a:b'": "evaluation.reward of answers: drop one or the other",
    "text=null": "'rewards' is missing",
}


@pytest.fixture(autouse=True)
def nothing_is_made(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "makes" not in request.fixturenames:
        monkeypatch.setattr(egg, "new_model", lambda *_: pytest.fail("a model is made"))


@pytest.fixture
def makes() -> None:
    """Models may be made in this test."""


@pytest.mark.parametrize("override", WRONG)
def test_what_is_wrong_is_said_in_one_line(override: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        train(load_recipe("egg_tiny", [override, f"output_dir={tmp_path / 'run'}"]))
    message = str(error.value)
    assert WRONG[override] in message
    assert "\n" not in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "holds no text"),
        (b"\xff\xfe\x00\x01", "is no UTF-8 text"),
        (b"a\0b", "holds byte 0"),
        (b"short", "2048 streams of 100 bytes need a corpus of 204801, and it has"),
    ],
)
def test_a_file_that_does_not_serve(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "text.txt").write_bytes(content)
    recipe = load_recipe("egg_tiny", [f"text.name={tmp_path / 'text.txt'}", f"output_dir={tmp_path / 'run'}"])
    for attempt in (lambda: train(recipe), lambda: list(plan(recipe))):
        with pytest.raises(UsageError, match=expected) as error:
            attempt()
        assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_dataset_that_is_not_there_is_named(tmp_path: Path) -> None:
    recipe = load_recipe("egg_minipile", [f"output_dir={tmp_path / 'run'}", "population.size=512"])
    with pytest.raises(UsageError, match="the dataset 'JeanKaddour/minipile'"):
        train(recipe)


def test_more_memory_than_there_is_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eggroll_rl.engines.needs.free_bytes", lambda device: 2**20)
    with pytest.raises(UsageError, match=r"the run needs .* for states of the members.*: lower population.size"):
        train(load_recipe("egg_tiny", ["population.size=16384", "text.group=64", f"output_dir={tmp_path / 'run'}"]))


def test_what_is_for_answers_refuses_text(tmp_path: Path) -> None:
    recipe = load_recipe("egg_tiny", [f"output_dir={tmp_path / 'run'}"])
    with pytest.raises(UsageError, match="GRPO is for recipes with rewards"):
        grpo.train(recipe)
    with pytest.raises(UsageError, match="a comparison is for recipes with rewards"):
        Plan.from_options("egg", recipe, 1, "0", "eggroll", None, 0)
    (tmp_path / "recipe.yaml").write_text("model: egg:16x1\ntext: {}\n")
    with pytest.raises(UsageError, match="an evaluation of answers is for recipes with rewards"):
        evaluate_model(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "weights", "products", "signs"),
    [("egg_tiny", 131_648, 114_688, "512 B"), ("egg_minipile", 4_856_064, 4_784_128, "32 KiB")],
)
def test_the_plan_says_what_a_run_needs(name: str, weights: int, products: int, signs: str) -> None:
    recipe = load_recipe(name)
    told = dict(plan(recipe))
    assert f"{weights:,} parameters, int8" in told["model"]
    assert told["arithmetic"].startswith(f"{products:,} multiply-adds")
    assert told["reading"].startswith(f"{recipe.population.size * 100:,} bytes per generation")
    assert f"signs {signs} for each generation" in told["disk"]
    assert {"text", "memory", "budget", "output"} <= told.keys()


def test_a_dumped_recipe_has_what_is_of_text_alone() -> None:
    recipe = load_recipe("egg_tiny")
    dumped = recipe.model_dump(mode="json")
    assert not {"data", "rewards", "scoring", "sampling", "retention", "grpo"} & dumped.keys()
    assert Recipe.model_validate(dumped) == recipe


# Signs, in two bits.

signs = st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=300)


@given(signs | st.lists(st.floats(-3, 3), min_size=1, max_size=5), st.booleans())
def test_weights_come_back_from_a_file_and_another_process(tmp_path_factory, values, paired) -> None:  # type: ignore[no-untyped-def]
    weights = tuple(w for value in values for w in (value, -value if paired else value))
    population = Population(0, 0, PopulationConfig(size=len(weights)))
    update = Update(population, weights, 0.5)
    assert pickle.loads(pickle.dumps(update)) == update
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    recipe = Recipe(model="m", rewards=({"fn": "a:b"},), population=population.config)  # type: ignore[arg-type]
    with Journal.create(path, Header(recipe=recipe, base_sha256="")) as journal:
        journal.append(Entry(update, {"seconds": 0.0}, []))
    with Journal(path) as journal:
        assert [entry.update for entry in journal.entries()] == [update]


def test_a_generation_of_262144_members_is_32_kib() -> None:
    population = Population(0, 0, PopulationConfig(size=2**18))
    sign_K = torch.randint(-1, 2, (2**17,), generator=torch.Generator().manual_seed(0)).double()
    update = Update(population, tuple(torch.stack([sign_K, -sign_K], 1).flatten().tolist()), 0.5)
    assert len(update.packed()) <= 2**15 + 4
    assert len(pickle.dumps(update)) < 2**15 + 2000


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=2, max_size=64).map(lambda s: s[: len(s) // 2 * 2]))
def test_the_fitness_of_pairs_is_the_sign_of_their_scores(scores: list[int]) -> None:
    score_N = torch.tensor(scores)
    weights_N = fitness(score_N.double()[:, None] / 16, FitnessConfig(shaping="sign"), antithetic=True)
    assert torch.equal(weights_N[0::2].to(torch.int8), pair_fitness(score_N))
    assert torch.equal(weights_N[1::2], -weights_N[0::2])


@given(st.integers(0, 10**9), st.floats(0.01, 8))
def test_the_rate_of_votes_is_the_share_that_moves(generation: int, alpha: float) -> None:
    assert threshold_for(moving_share(generation, alpha)) == threshold(generation, alpha) >= 0


# Members in parts.


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 12), st.integers(0, 3))
def test_members_in_any_parts_read_the_same(size: int, generation: int) -> None:
    engine = EggEngine(new_model(EggConfig(16, 1), 0), byte_tokenizer(), seed=3, shift=4)
    text = torch.randint(1, 256, (500,), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    streams, population = Streams(text, 6, 9), Population(3, generation, PopulationConfig(size=24, sigma=0.0625))
    state = engine.read(streams.batch(7), None, population).state
    before = state.clone()
    whole = engine.read(streams.batch(generation), state, population)
    parts = [engine.read(*part) for part in read_by_members(streams.batch(generation), state, population, None, size)]
    united = join_foretold(parts)
    assert torch.equal(whole.bits, united.bits)
    assert torch.equal(whole.state, united.state)
    assert torch.equal(state, before)
    some = range(size // 2 * 2, 24)
    rest = read_by_members(streams.batch(generation), state[some.start :], population, some, size)
    assert torch.equal(whole.bits[some.start :], join_foretold([engine.read(*part) for part in rest]).bits)


def test_a_new_model_is_the_same_anywhere() -> None:
    model = new_model(EggConfig(64, 2), 0)
    weights = torch.cat([p.flatten() for p in model.parameters() if p.ndim == 2]).double()
    assert weights.mean().abs() < 0.2
    assert weights.std() == pytest.approx((16**2 + 1 / 12) ** 0.5, rel=0.01)  # rounded, not truncated
    expected = "137aae795cfd8cbdcb66109d31aac85d96388036e02d7947ed5f340ed9c346de"
    assert tensors_hash(dict(model.named_parameters())) == expected
