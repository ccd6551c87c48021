"""Whitened noise: what it is, that engines use it as the update does, and what a run keeps of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.gradient_density import by_direction
from benchmarks.tiny_task import write_task
from eggroll_rl import train as training
from eggroll_rl.config import ParametersConfig, PopulationConfig, SamplingConfig, load_recipe
from eggroll_rl.data.dataset import load_data
from eggroll_rl.engines.build import build_engine, check_engine, prompt_check
from eggroll_rl.engines.local.engine import LocalEngine
from eggroll_rl.es.noise import Noise
from eggroll_rl.es.parameters import EvolvedParameter
from eggroll_rl.es.perturbation import Factors, Members
from eggroll_rl.es.population import Population
from eggroll_rl.es.update import Update, gradient
from eggroll_rl.es.whitening import InputMoments, whitened
from eggroll_rl.runs.rebuild import verify
from eggroll_rl.runs.whitening import save_whitening, whiten
from eggroll_rl.system.errors import UsageError

NOBODY = Members({}, torch.ones(0))
SHORT = SamplingConfig(max_new_tokens=12, temperature=1.0)
PROMPTS = ["12 + 34 =", "a", "is 12 in the </answer>?"]


def moments_of(x_LI: Tensor) -> InputMoments:
    moments = InputMoments()
    moments.kept_MT = torch.ones(len(x_LI), dtype=torch.bool)
    moments.add_product_(torch.empty(0), x_LI, NOBODY)
    return moments


@given(st.integers(2, 40), st.floats(1e-6, 1e3), st.integers(0, 99))
def test_a_member_differs_as_much_as_with_plain_noise(size: int, damping: float, seed: int) -> None:
    torch.manual_seed(seed)
    x_LI = torch.randn(3 * size, size) * torch.logspace(-2, 1, size)
    S_II = moments_of(x_LI).whitening(damping)
    torch.testing.assert_close(S_II, S_II.mT)
    assert ((x_LI @ S_II).square().sum() / x_LI.square().sum()).item() == pytest.approx(1, rel=1e-3)


def test_without_damping_every_direction_of_the_inputs_matters_alike() -> None:
    torch.manual_seed(0)
    x_LI = torch.randn(500, 8) @ torch.randn(8, 8)
    y_LI = x_LI @ moments_of(x_LI).whitening(1e-6)
    second_II = y_LI.mT @ y_LI / len(y_LI)
    torch.testing.assert_close(second_II, second_II.trace() / 8 * torch.eye(8), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(moments_of(x_LI).whitening(1e3), torch.eye(8), rtol=1e-1, atol=2e-2)


def test_inputs_of_which_some_never_vary_or_all_are_zero_give_finite_noise() -> None:
    for x_LI in (torch.tensor([[1.0, 0.0, 0.0]]), torch.zeros(4, 3)):
        assert moments_of(x_LI).whitening(0.03).isfinite().all()


@given(st.integers(0, 40), st.integers(1, 40), st.integers(1, 3), st.integers(1, 300))
def test_a_pair_has_the_same_numbers_whoever_is_drawn_with_it(first: int, pairs: int, rank: int, size: int) -> None:
    torch.manual_seed(0)
    b_KIr, S_II = torch.randn(80, size, rank), torch.randn(size, size)
    part_KIr = whitened(b_KIr[first : first + pairs], S_II, first)
    assert torch.equal(part_KIr, whitened(b_KIr, S_II, 0)[first : first + pairs])
    torch.testing.assert_close(part_KIr.mT, b_KIr[first : first + pairs].mT @ S_II, rtol=1e-3, atol=1e-2)


def test_threads_do_not_matter() -> None:
    torch.manual_seed(0)
    b_KIr, S_II, threads = torch.randn(64, 384, 1), torch.randn(384, 384), torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(whitened(b_KIr, S_II, 0))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found)


def test_noise_and_gradient_are_whitened_alike() -> None:
    torch.manual_seed(0)
    plain, noise = Noise(3, rank=2), Noise(3, rank=2)
    parameters = [EvolvedParameter("a.weight", (5, 7), "lowrank"), EvolvedParameter("b.weight", (7, 5), "lowrank")]
    S_II = torch.randn(7, 7)
    noise.whiten({"a.weight": S_II + S_II.mT})
    for _ in range(2):  # the second time it is known
        before, after = (one.draw(parameters, 1, range(4)) for one in (plain, noise))
        of_a, was_a = after["a.weight"], before["a.weight"]
        assert isinstance(of_a, Factors)
        assert isinstance(was_a, Factors)
        torch.testing.assert_close(of_a.B_KIr, noise.whitening["a.weight"] @ was_a.B_KIr)
        assert torch.equal(of_a.A_KOr, was_a.A_KOr)
        assert all(map(torch.equal, after["b.weight"].tensors(), before["b.weight"].tensors()))
    population, weights_K = Population(3, 1, PopulationConfig(size=8, rank=2, sigma=0.1)), torch.randn(4)
    torch.testing.assert_close(
        gradient(parameters[0], weights_K, noise, population),
        gradient(parameters[0], weights_K, plain, population) @ noise.whitening["a.weight"],
    )
    noise.whiten({})
    assert all(map(torch.equal, noise.draw(parameters, 1, range(4))["a.weight"].tensors(), was_a.tensors()))


def engine_of(model: Any, tokenizer: Any, **changes: Any) -> LocalEngine:
    population = PopulationConfig(size=6, sigma=0.1, whitening=0.05, **changes)
    parameters = ParametersConfig(frozen=("*embed*", "*norm*", "*.r_k"))
    return LocalEngine(model, tokenizer, population=population, parameters=parameters)


@pytest.mark.parametrize("architecture", ["llama", "rwkv7"])
def test_moments_are_of_what_makes_the_answers_tokens(new_model: Any, tokenizer: Any, architecture: str) -> None:
    model = new_model(architecture)
    engine = engine_of(model, tokenizer)
    found, seen = engine.measure_whitening(PROMPTS, SHORT), list[Tensor]()
    assert found.keys() == {f"whitening.{parameter.name}" for parameter in engine.evolved if len(parameter.shape) == 2}
    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    (answers,) = engine.generate(PROMPTS, SHORT)
    seen.clear()
    inputs = []
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = tokenizer(prompt)["input_ids"]
        model(input_ids=torch.tensor([[*ids, *answer.token_ids]]))
        inputs.append(seen.pop()[0, len(ids) - 1 : -1])
    handle.remove()
    expected = moments_of(torch.cat(inputs)).whitening(0.05)
    torch.testing.assert_close(found["whitening.lm_head.weight"], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("architecture", ["llama", "rwkv7"])
def test_a_member_answers_as_a_model_of_its_weights_does(new_model: Any, tokenizer: Any, architecture: str) -> None:
    engine = engine_of(new_model(architecture), tokenizer)
    plain = engine.generate(PROMPTS, SHORT, population := Population(0, 0, engine.population))
    engine.load_state_dict({**engine.state_dict(), **engine.measure_whitening(PROMPTS, SHORT)})
    members = engine.generate(PROMPTS, SHORT, population)
    assert members != plain
    state = {key: tensor.clone() for key, tensor in engine.state_dict().items()}
    parameters = dict(engine.model.named_parameters())
    drawn = engine.noise.draw(engine.evolved, 0, range(population.pairs), torch.float32)
    greedy = SHORT.model_copy(update={"temperature": 0.0})
    for member in (0, 3):
        amount = population.sign(member) * population.sigma
        for parameter in engine.evolved:
            weight = parameters[parameter.name]
            weight.copy_(drawn[parameter.name].added_to(weight, population.pair(member), amount, 1))
        engine.weights_changed()
        alone = engine.generate(PROMPTS, greedy)[0]
        engine.load_state_dict(state)
        assert alone == engine.generate(PROMPTS, greedy, population, range(member, member + 1))[0]


def test_a_state_of_other_whitening_does_not_fit(new_model: Any, tokenizer: Any) -> None:
    engine = engine_of(new_model("llama"), tokenizer)
    state = {**engine.state_dict(), **engine.measure_whitening(PROMPTS, SHORT)}
    for change in ({"whitening.lm_head.weight": torch.eye(3)}, {"whitening.none.weight": torch.eye(3)}):
        with pytest.raises(ValueError, match=r"does not fit .*(lm_head|none)\.weight"):
            engine.load_state_dict(state | change)
    engine.load_state_dict(state)
    assert engine.noise.whitening.keys() == {key.removeprefix("whitening.") for key in state if "whitening" in key}
    engine.load_state_dict({key: tensor for key, tensor in state.items() if not key.startswith("whitening")})
    assert engine.noise.whitening == {}


@pytest.mark.parametrize("kind", ["transformers", "rwkv"])
def test_a_run_keeps_its_whitening_and_is_nothing_without_it(tmp_path: Path, kind: str) -> None:
    settings = ["generations=4", "snapshots.every=0", f"output_dir={tmp_path / 'run'}"]
    part = training.train(load_recipe(write_task(tmp_path, kind), settings))
    assert not [finding for finding in verify(part.path) if finding.fault]
    kept = part.whitening_file.read_bytes()
    part.whitening_file.unlink()
    for use in (lambda: training.resume(part.path, ["generations=6"]), lambda: list(verify(part.path))):
        with pytest.raises(UsageError, match=r"whitening\.npz cannot be read .*noise follows from it"):
            use()
    for damaged in (b"", kept[:100], kept[:-30]):
        part.whitening_file.write_bytes(damaged)
        with pytest.raises(UsageError, match="cannot be read"):
            list(verify(part.path))
    save_whitening(part, {"whitening.lm_head.weight": torch.eye(32)})
    with pytest.raises(UsageError, match=r"whitening\.npz is not the file that the run began with"):
        training.resume(part.path, ["generations=6"])
    part.whitening_file.write_bytes(kept)
    training.resume(part.path, ["generations=6"])
    findings = list(verify(part.path))
    assert len(findings) == 3  # two hashes, the model
    assert not [finding for finding in findings if finding.fault]


def test_a_run_that_was_killed_before_its_journal_can_begin_again(tmp_path: Path, monkeypatch: Any) -> None:
    recipe = load_recipe(write_task(tmp_path), ["generations=1", f"output_dir={tmp_path / 'run'}"])

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("eggroll_rl.runs.journalled.Journal.create", killed)
        with pytest.raises(KeyboardInterrupt):
            training.train(recipe)
    assert (tmp_path / "run" / "whitening.npz").is_file()
    assert training.train(recipe).journal().is_complete


def test_the_time_that_it_takes_is_a_part_of_training(tmp_path: Path, monkeypatch: Any) -> None:
    import time

    def slow(*arguments: Any) -> Any:
        time.sleep(0.5)
        return whiten(*arguments)

    monkeypatch.setattr("eggroll_rl.runs.answers.whiten", slow)
    settings = ["generations=1", f"output_dir={tmp_path / 'run'}"]
    with training.train(load_recipe(write_task(tmp_path), settings)).journal() as journal:
        assert journal.seconds_at(1) > 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dense": '["*"]'}, "population.whitening is for low-rank noise, and all noise here is dense"),
        ({"model": "gpt2"}, r"population\.whitening is for matrices of linear layers, and .*c_attn.* are none"),
        (
            {"engine": "vllm"},
            r"population\.whitening=0\.1: engine vllm has plain noise alone: set population\.whitening",
        ),
    ],
)
def test_what_has_plain_noise_alone_is_refused(
    model_folder: Callable[[str], Path], tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    settings = [f"model={model_folder(changes.get('model', 'llama'))}", f"engine.name={changes.get('engine', 'local')}"]
    recipe = load_recipe(write_task(tmp_path), [*settings, f"parameters.dense={changes.get('dense', '[]')}"])
    with pytest.raises(UsageError, match=message):
        check_engine(recipe)


def test_prompts_of_training_are_taken_in_order(tmp_path: Path, monkeypatch: Any) -> None:
    recipe = load_recipe(write_task(tmp_path))
    data = load_data(recipe.data, recipe.seed, prompt_check(recipe, check_engine(recipe)))
    asked: list[Any] = []

    class Listening(LocalEngine):
        def measure_whitening(self, prompts: Any, sampling: SamplingConfig) -> dict[str, Tensor]:
            asked.extend(prompts)
            return super().measure_whitening(prompts, sampling)

    monkeypatch.setattr("eggroll_rl.engines.local.engine.LocalEngine", Listening)
    with build_engine(recipe) as engine:
        whiten(engine, data, recipe.sampling)
    assert asked == [prompt for generation in range(64) for prompt in data.batch(generation).prompts]


def test_an_update_of_a_whitened_engine_depends_on_its_whitening(new_model: Any, tokenizer: Any) -> None:
    update = Update(Population(0, 0, PopulationConfig(size=6, sigma=0.1)), (1.0, -1.0, 0.5, 0.0, 0.0, 0.25), 0.1)
    hashes = []
    for is_whitened in (False, True, True):
        engine = engine_of(new_model("llama"), tokenizer)
        if is_whitened:
            engine.load_state_dict({**engine.state_dict(), **engine.measure_whitening(PROMPTS, SHORT)})
        engine.apply(update)
        hashes.append(engine.weights_hash())
    assert hashes[0] != hashes[1] == hashes[2]


def test_gradients_are_divided_by_directions_of_the_inputs_the_largest_first() -> None:
    torch.manual_seed(0)
    x_LI, gradient_OI = torch.randn(900, 8) * torch.tensor([8.0, 1, 1, 1, 1, 1, 1, 1]), torch.randn(5, 8)
    other_OI = gradient_OI * torch.tensor([-1.0, 1, 1, 1, 1, 1, 1, 1])
    whitening_II = moments_of(x_LI).whitening(1e-6)
    _, first, _, last = (line.strip("| ").split(" | ") for line in by_direction(gradient_OI, other_OI, whitening_II))
    assert (first[0], last[0]) == ("1 to 2", "5 to 8")
    assert float(first[1].rstrip("%")) == pytest.approx(100 * 65 / 71, abs=3)
    assert float(first[2]) < 0.9 < float(last[2])


def test_a_plain_run_with_an_engine_that_was_whitened_has_plain_noise(tmp_path: Path) -> None:
    task = write_task(tmp_path)
    short = ["generations=2", "optimizer.average=0", "optimizer.anchor=0"]
    recipe = load_recipe(task, [*short, f"output_dir={tmp_path / 'whitened'}"])
    plain = load_recipe(task, [*short, "population.whitening=null", f"output_dir={tmp_path / 'plain'}"])
    with build_engine(recipe) as engine:
        before = {key: tensor.clone() for key, tensor in engine.state_dict().items()}
        training.train(recipe, engine)
        after = engine.state_dict()
        engine.load_state_dict({**before, **{key: after[key] for key in after if key.startswith("whitening")}})
        run = training.train(plain, engine)
    assert not [finding for finding in verify(run.path) if finding.fault]


def test_an_engine_of_plain_noise_says_so(new_model: Any, tokenizer: Any) -> None:
    with pytest.raises(UsageError, match="this engine was built for plain noise"):
        LocalEngine(new_model("llama"), tokenizer).measure_whitening(PROMPTS, SHORT)


def test_steps_are_bounded_however_large_whitening_is(new_model: Any, tokenizer: Any) -> None:
    engine = engine_of(new_model("llama"), tokenizer)
    update = Update(Population(0, 0, PopulationConfig(size=6, sigma=0.1)), (1.0, -1.0, 0.0, 0.0, 0.0, 0.0), 0.1)
    plain = engine.learner._largest_step(update)
    engine.noise.whiten({"lm_head.weight": 50 * torch.eye(32)})
    assert engine.learner._largest_step(update) == pytest.approx(50 * plain)
