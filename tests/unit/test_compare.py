"""What a comparison is made of: tests and curves against other implementations, and every mistake in one line."""

import json
import math
import os
import signal
import subprocess
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from eggroll_rl.comparison import compare, processes, tuning
from eggroll_rl.comparison.contender import evaluations
from eggroll_rl.comparison.flops import Work, flops
from eggroll_rl.comparison.methods import candidates, changed, growing_batches, note_of, rollouts_of, settings_of
from eggroll_rl.comparison.pages import markdown
from eggroll_rl.comparison.plan import Plan
from eggroll_rl.comparison.processes import RunFailed
from eggroll_rl.comparison.tables import _trial
from eggroll_rl.config import DataConfig, Recipe, load_recipe
from eggroll_rl.data.dataset import HALVES, load_data
from eggroll_rl.es.fitness import check_fitness
from eggroll_rl.es.parameters import select
from eggroll_rl.models.blueprint import dissect
from eggroll_rl.models.loading import empty_model, load_model, load_tokenizer
from eggroll_rl.report.drift import drift
from eggroll_rl.runs.clock import Marks
from eggroll_rl.system.durable import write_json
from eggroll_rl.system.errors import UsageError
from eggroll_rl.system.ownership import owned

ModelFolder = Callable[[str], Path]
RECIPE = Recipe(model="embedded:rwkv7-countdown", engine={"name": "rwkv"}, rewards=[{"fn": "a:b"}], minutes=3.0)


def plan(**options: Any) -> Plan:
    chosen: dict[str, Any] = {"minutes": 1.0, "seeds": "0", "methods": "eggroll,grpo", "memory": None, "tune": 0}
    return Plan.from_options("name", options.pop("recipe", RECIPE), **(chosen | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minutes": 0.0}, "--minutes 0: it must be above 0"),
        ({"minutes": math.nan}, "--minutes nan: it must be above 0"),
        ({"minutes": math.inf}, "--minutes inf: it must be above 0, and 1e+07 at most"),
        ({"minutes": 2e7}, "--minutes 2e+07: it must be above 0, and 1e+07 at most"),
        ({"memory": -1.0}, "--memory -1: it must be above 0"),
        ({"tune": -1}, "--tune -1: give a number of trials"),
        ({"seeds": "0,x"}, "--seeds '0,x': write whole numbers below 2**31 with commas, as in 0,1,2"),
        ({"seeds": ""}, "--seeds ''"),
        ({"seeds": "0,,1"}, "--seeds '0,,1'"),
        ({"seeds": "-1"}, "--seeds '-1'"),
        ({"seeds": "3,3"}, "--seeds names one twice: [3, 3]"),
        ({"methods": "eggrol"}, "--methods: no method 'eggrol'; did you mean 'eggroll'?"),
        ({"methods": "sgd"}, "--methods: no method 'sgd'; there is eggroll, grpo, openes"),
        ({"methods": "grpo,grpo"}, "--methods names one twice"),
        ({"minutes": None, "recipe": RECIPE.model_copy(update={"minutes": None})}, "give --minutes"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        plan(**options)
    assert message in str(error.value)


def test_full_rank_noise_is_for_the_matrices_that_evolve() -> None:
    recipe = changed(RECIPE, settings_of("openes", RECIPE))
    shapes = {name: tuple(p.shape) for name, p in empty_model(RECIPE.model).named_parameters()}
    ours, theirs = select(shapes, RECIPE.parameters), select(shapes, recipe.parameters)
    assert [parameter.name for parameter in ours] == [parameter.name for parameter in theirs]
    assert {parameter.kind for parameter in ours} == {"lowrank"}
    assert {parameter.kind for parameter in theirs} == {"dense"}
    assert recipe.engine.name == "transformers"
    assert settings_of("eggroll", RECIPE) == settings_of("grpo", RECIPE) == {}


def test_grpo_answers_where_it_trains() -> None:
    recipe = changed(RECIPE, {"engine.name": "vllm"})
    assert settings_of("grpo", recipe) == {"engine.name": "local"}
    assert settings_of("eggroll", recipe) == {}
    assert "the engine local" in note_of("grpo", recipe)
    assert "the same engine" in note_of("grpo", RECIPE)


@pytest.mark.parametrize("method", ["eggroll", "grpo", "openes"])
def test_settings_to_try_are_valid_and_differ_and_begin_with_the_recipes(method: str) -> None:
    tried = [changed(RECIPE, settings) for settings in islice(candidates(method, RECIPE), 9)]
    assert tried[0] == RECIPE
    assert all(one != other for n, one in enumerate(tried) for other in tried[:n])
    own = rollouts_of(method, RECIPE)
    assert {rollouts_of(method, recipe) for recipe in tried} == {own // 2, own, 2 * own}
    fitted = plan(memory=1.0, tune=9).settings_to_try(method, RECIPE)
    assert {rollouts_of(method, changed(RECIPE, settings)) for settings in fitted} == {own // 2, own}


@pytest.mark.parametrize(
    ("method", "own"),
    [
        ("grpo", {"grpo": {"prompts": 8, "group": 8, "minibatches": 4, "rows": 16}}),
        ("eggroll", {"fitness.best": 100, "population.size": 256}),
        ("eggroll", {"population.size": 6}),
        ("random", {"data.prompts": 64}),
        ("randopt", {"fitness.shaping": "sign", "fitness.best": 2}),
    ],
)
def test_settings_to_try_fit_whatever_the_recipe_has(method: str, own: dict[str, Any]) -> None:
    recipe = changed(RECIPE, own)
    recipe = changed(recipe, settings_of(method, recipe))
    for settings in candidates(method, recipe):
        tried = changed(recipe, settings)
        check_fitness(tried.fitness, tried.population.size, tried.population.antithetic)
    for settings in islice(growing_batches(method, recipe), 3):
        tried = changed(recipe, settings)
        check_fitness(tried.fitness, tried.population.size, tried.population.antithetic)


def test_time_alone_ends_the_runs_of_a_comparison() -> None:
    """Generations of the recipe would end one method early."""
    for generations in (1, 600):
        common = plan(minutes=2e3, recipe=changed(RECIPE, {"generations": generations})).common()
        assert common.generations > 1e8
        assert common.minutes == 2e3


@pytest.mark.parametrize("method", ["eggroll", "grpo"])
def test_batches_double(method: str) -> None:
    rollouts = [
        rollouts_of(method, changed(RECIPE, settings)) for settings in islice(growing_batches(method, RECIPE), 5)
    ]
    assert rollouts == [rollouts[0] << doublings for doublings in range(5)]


def test_marks_are_passed_once_and_the_end_is_none() -> None:
    marks = Marks(1.0, 4)
    passed = [marks.passed(seconds) for seconds in (0, 14.9, 15, 15, 29, 46, 50, 60, 61)]
    assert passed == [False, False, True, False, False, True, False, False, False]
    assert [Marks(1.0, 4, 20.0).passed(seconds) for seconds in (29, 31)] == [False, True]
    assert not any(Marks(minutes, parts).passed(1e9) for minutes, parts in ((None, 4), (1.0, 0), (1.0, 1)))


@pytest.mark.parametrize(("asked", "given"), [(0, 8), (3, 3)])
def test_a_recipe_may_say_how_often_runs_are_evaluated(asked: int, given: int) -> None:
    common = plan(recipe=changed(RECIPE, {"evaluation.marks": asked, "evaluation.every": 5})).common()
    assert (common.evaluation.marks, common.evaluation.every) == (given, 0)


def test_evaluations_get_the_mark_of_the_budget() -> None:
    recipe = changed(RECIPE, {"minutes": 1.0, "evaluation.marks": 4})
    share = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "n": 8}
    records = [{"generation": g, "seconds": s, **share} for g, s in ((0, 15.1), (3, 15.2), (9, 47.0), (12, 60.4))]
    found = evaluations([*records, {"reward_mean": 1.0}], recipe, rollouts=100)
    assert [(e["mark"], e["rollouts"]) for e in found] == [(0, 0), (1, 300), (3, 900), (4, 1200)]


def test_drift_is_the_norm_of_the_difference(model_folder: ModelFolder, tmp_path: Path) -> None:
    base = model_folder("llama")
    for file in base.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(base / "model.safetensors")
    save_file(
        {name: 1.25 * tensor for name, tensor in weights.items()}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    assert drift(str(base), tmp_path) == pytest.approx(0.25, rel=1e-5)
    assert drift(str(base), base) == 0.0
    assert sum(tensor.square().sum() for tensor in weights.values()) > torch.tensor(1.0)


def finished(peaks: dict[int, float | None] | None = None, accuracies: dict[str, float] | None = None) -> Any:
    """Stands in for ``tuning.contend``: a run with the peak memory of its number of rollouts, None where it fails."""

    def contend(method: str, recipe: Recipe, path: Path, say: Any) -> dict[str, Any]:
        peak = peaks.get(rollouts_of(method, recipe), 99.0) if peaks else 1.0
        if peak is None:
            raise RunFailed("out of memory")
        share = {"accuracy": (accuracies or {}).get(path.name, 0.5), "low": 0.0, "high": 1.0, "n": recipe.evaluation.n}
        return {"peak_memory_gib": peak, "seconds_training": 1.0, **share}

    return contend


def test_the_largest_batch_within_the_memory_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for peaks, expected in (({64: 0.5, 128: 0.9, 256: 1.1}, 16), ({64: 0.5, 128: None}, 8)):
        monkeypatch.setattr(tuning, "contend", finished(peaks))
        settings, probes = tuning.largest_batch("eggroll", RECIPE, 1.0, tmp_path, print)
        assert settings == {"population.size": expected}
        assert [probe["peak_memory_gib"] for probe in probes] == list(peaks.values())
        assert [probe["settings"] for probe in probes if probe["chosen"]] == [settings]


def test_a_budget_that_nothing_fits_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tuning, "contend", finished({64: 0.5}))
    smallest = "--memory 0.25: the smallest batch of EGGROLL, 64 rollouts, "
    with pytest.raises(UsageError, match=rf"{smallest}already takes 0.50 GiB: give more"):
        tuning.largest_batch("eggroll", RECIPE, 0.25, tmp_path, print)
    hasty = changed(RECIPE, {"minutes": 0.01})
    with pytest.raises(UsageError, match=rf"{smallest}takes longer than the minutes"):
        tuning.largest_batch("eggroll", hasty, 0.25, tmp_path, print)
    monkeypatch.setattr(tuning, "contend", finished({64: None}))
    with pytest.raises(UsageError, match="out of memory"):
        tuning.largest_batch("eggroll", RECIPE, 0.25, tmp_path, print)


def test_tuning_takes_the_best_trial_and_touches_no_problem_of_the_comparison(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipes: list[Recipe] = []
    run = finished(accuracies={"eggroll-2": 0.8, "eggroll-3": 0.8})

    def contend(method: str, recipe: Recipe, *rest: Any) -> Any:
        recipes.append(recipe)
        return run(method, recipe, *rest)

    monkeypatch.setattr(tuning, "contend", contend)
    common = plan(seeds="0,4", tune=4, recipe=changed(RECIPE, {"evaluation.n": 64}))
    best, trials = tuning.tuned("eggroll", common.common(), common, tmp_path / "trials", print)
    assert [trial["chosen"] for trial in trials] == [False, False, True, False]
    assert best == trials[2]["settings"]
    assert best["optimizer.lr"] == pytest.approx(RECIPE.optimizer.lr / 3)
    assert {(r.seed, r.minutes, r.evaluation.half, r.evaluation.n) for r in recipes} == {(5, 0.25, "tuning", 64)}
    assert common.common().evaluation.half == "judgement"
    assert plan().common().evaluation.half is None


def failing(*names: str) -> Any:
    """Stands in for ``tuning.contend``: these runs fail."""
    run = finished()

    def contend(method: str, recipe: Recipe, path: Path, say: Any) -> Any:
        if path.name in names:
            raise RunFailed(f"{path.name} was killed")
        return run(method, recipe, path, say)

    return contend


def test_a_setting_that_fails_is_out_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mine, said = plan(tune=3), list[str]()
    monkeypatch.setattr(tuning, "contend", failing("grpo-0"))
    best, trials = tuning.tuned("grpo", mine.common(), mine, tmp_path / "trials", said.append)
    assert [trial["accuracy"] for trial in trials] == [None, 0.5, 0.5]
    assert best == trials[1]["settings"]
    assert said == ["grpo-0 is out: grpo-0 was killed"]
    assert _trial(trials[0])[2].value == "failed"
    monkeypatch.setattr(tuning, "contend", failing("grpo-0", "grpo-1", "grpo-2"))
    with pytest.raises(RunFailed, match="grpo-2 was killed"):
        tuning.tuned("grpo", mine.common(), mine, tmp_path / "trials", print)


def test_all_methods_have_as_many_trials() -> None:
    recipe = changed(RECIPE, {"rewards": [{"fn": "eggroll_rl.rewards.countdown:countdown"}]})
    with pytest.raises(UsageError, match=r"--tune 18: .* 18 of EGGROLL, 13 of random search: give 13 at most"):
        plan(recipe=recipe, methods="eggroll,random", tune=18).check()


def test_memory_is_that_of_one_process() -> None:
    pooled = changed(RECIPE, {"engine.pool": {"replicas": 2}})
    with pytest.raises(UsageError, match="--memory measures the process that trains"):
        plan(recipe=pooled, memory=1.0).check()


class Processes:
    """Stands in for ``subprocess.run``: each run ends at once with this exit code, and 0 leaves a result."""

    def __init__(self, code: int = 0):
        self.code, self.recipes = code, list[Recipe]()

    def __call__(self, command: list[str], stdout: Any, **_: Any) -> Any:
        recipe = load_recipe(command[4])
        self.recipes.append(recipe)
        recipe.output_dir.mkdir()
        stdout.write(b"the last line\n")
        if self.code == 0:
            facts = dict.fromkeys(("seconds_training", "seconds_loading", "peak_memory_gib", "low", "high"), 0.5)
            result = {"accuracy": recipe.optimizer.lr, "n": 1, "rollouts": len(self.recipes)} | facts
            write_json(recipe.output_dir / "result.json", result)
        return subprocess.CompletedProcess(command, self.code)


def test_a_finished_run_stays_unless_its_recipe_is_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started, path = Processes(), tmp_path / "eggroll-0"
    monkeypatch.setattr(processes.subprocess, "run", started)
    runs = [processes.contend("eggroll", changed(RECIPE, {"optimizer.lr": lr}), path, print) for lr in (0.1, 0.1, 0.2)]
    assert [(run["accuracy"], run["rollouts"]) for run in runs] == [(0.1, 1), (0.1, 1), (0.2, 2)]
    kept = {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if "unfinished" in str(file)}
    aside = "eggroll-0.unfinished-1"
    assert kept == {aside, f"{aside}/result.json", f"{aside}.yaml", f"{aside}.log"}
    assert load_recipe(tmp_path / f"{aside}.yaml").optimizer.lr == 0.1
    elsewhere = tmp_path / "moved"
    elsewhere.mkdir()
    for file in ("eggroll-0", "eggroll-0.yaml"):
        (tmp_path / file).rename(elsewhere / file)
    processes.contend("eggroll", started.recipes[-1], elsewhere / "eggroll-0", print)
    assert len(started.recipes) == 2


def test_a_run_that_still_runs_is_not_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processes.subprocess, "run", Processes())
    path = tmp_path / "grpo-0"
    path.mkdir()
    with owned(path), pytest.raises(UsageError, match=rf"grpo-0 belongs to process {os.getpid()}"):
        processes.contend("grpo", RECIPE, path, print)
    assert [file.name for file in tmp_path.iterdir()] == ["grpo-0"]


def test_a_run_that_was_killed_names_the_signal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processes.subprocess, "run", Processes(-signal.SIGKILL))
    with pytest.raises(RunFailed, match=r"grpo-0 failed: ended by SIGKILL, .* its last line: the last line"):
        processes.contend("grpo", RECIPE, tmp_path / "grpo-0", print)


def test_a_comparison_beside_itself_is_told_who_goes_on(tmp_path: Path) -> None:
    recipe = changed(RECIPE, {"rewards": [{"fn": "eggroll_rl.rewards.countdown:countdown"}]})
    folder, mine = tmp_path / "one", plan(recipe=recipe, methods="eggroll")
    with owned(folder), pytest.raises(UsageError, match=rf"one belongs to process {os.getpid()} on .*; wait"):
        compare.run_comparison(mine, folder, print)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"fitness.best": 9999}, "fitness.best 9999 is more than the population's"),
        ({"model": "embedded:rwkv7-countdwn"}, "did you mean embedded:rwkv7-countdown"),
        ({"engine.name": "transformers", "rewards": [{"fn": "nowhere:at_all"}]}, "nowhere"),
    ],
)
def test_a_comparison_that_is_refused_leaves_no_folder(fault: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        compare.run_comparison(plan(recipe=changed(RECIPE, fault), methods="eggroll"), tmp_path / "one", print)
    assert not (tmp_path / "one").exists()


def test_another_comparison_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    write_json(tmp_path / "one" / "plan.json", plan().document())
    before = (tmp_path / "one" / "plan.json").read_bytes()
    compare.refuse_other(tmp_path / "one", plan())  # the same goes on
    for other in ({"minutes": 2.0}, {"seeds": "0,1"}, {"recipe": changed(RECIPE, {"optimizer.lr": 0.5})}):
        with pytest.raises(UsageError, match=r"holds a comparison with .*\(now "):
            compare.refuse_other(tmp_path / "one", plan(**other))
    assert (tmp_path / "one" / "plan.json").read_bytes() == before
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists and is never overwritten: choose another --output"):
        compare.refuse_other(tmp_path / "two", plan())


def test_the_table_has_a_column_for_each_method() -> None:
    point = {"mark": 0, "seconds": 0.0, "rollouts": 0.0, "accuracy": 0.25}
    names = (
        "accuracy low high n base_accuracy rollouts tokens generations updates samples_per_second tokens_per_second "
        "peak_memory_gib drift flops retention seconds_training seconds_loading"
    )
    numbers = dict.fromkeys(names.split(), 0.5)
    summaries = [
        {
            "method": m,
            "label": m.upper(),
            "settings": s,
            "note": "",
            "pass_at_k": {"pass@1": 0.5},
            "maj_at_k": {"maj@2": 0.75},
            "curve": [point],
        }
        | {"seed_accuracies": [0.5, 0.5], **numbers}
        for m, s in (("eggroll", {}), ("openes", {"parameters.dense": ["a", "b"], "optimizer.lr": 1 / 3000}))
    ]
    comparison: Any = {
        "recipe_name": "r", "conclusion": "Nobody won.", "minutes": 1.0, "memory_gib": 2.0, "seeds": [0, 1],
        "environment": {"device": "x", "threads": 1}, "summaries": summaries, "probes": [], "trials": [],
        "runs": [], "tests": [],
    }  # fmt: skip
    lines = markdown(comparison).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert table[0] == "|  | EGGROLL | OPENES |"
    assert "| Held-out accuracy | 50.0% (50.0\u201350.0%) | 50.0% (50.0\u201350.0%) |" in table
    assert {line.count("|") for line in table} == {4}
    assert "Nobody won." in lines
    assert "- OPENES: `parameters.dense=2 matrices`, `optimizer.lr=0.000333`." in lines
    assert json.dumps(comparison)


def test_problems_to_tune_on_are_no_copies_of_those_of_the_comparison(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n % 7}?", "answer": n % 7} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = str(tmp_path / "rows.jsonl")
    data = load_data(DataConfig(name=file, test_name=file), 0)
    assert data.test(5).prompts == ["0?", "1?", "2?", "3?", "4?"]
    tuning, judgement = (data.test(20, half).prompts for half in HALVES)
    assert not set(tuning) & set(judgement)
    assert sorted([*tuning, *judgement]) == sorted(data.test(20).prompts)
    generated = load_data(DataConfig(), 0)
    first, second = (generated.test(40, half) for half in HALVES)
    keys = [
        {f"{sorted(n)} {t}" for n, t in zip(batch.columns["numbers"], batch.columns["target"], strict=True)}
        for batch in (first, second)
    ]
    assert len(keys[0]) == len(keys[1]) == 40
    assert not keys[0] & keys[1]


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_operations_are_those_that_torch_counts(architecture: str, model_folder: ModelFolder) -> None:
    """Of one generation of N members: the products of a forward pass, of low-rank noise, and of the update."""
    folder = model_folder(architecture)
    values = {"model": str(folder), "rewards": [{"fn": "a:b"}], "population": {"size": 4, "rank": 2}}
    recipe = Recipe.model_validate(values | {"evaluation": {"n": 1}, "parameters": {"frozen": ["*embed*", "*head*"]}})
    prompt = len(load_tokenizer(str(folder))(load_data(recipe.data, 0).test(1).prompts[0])["input_ids"])
    work, model = Work(generations=1, rollouts=4, tokens=40), load_model(str(folder), torch.float32)[0]
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(4, prompt + 10, dtype=torch.long))
    products = [v for k, v in counter.get_flop_counts()["Global"].items() if str(k) in ("aten.mm", "aten.addmm")]
    for settings, passes in (({"minibatches": 1}, 4), ({"minibatches": 2}, 5), ({"iterations": 2, "beta": 0.1}, 9)):
        assert flops("grpo", changed(recipe, {"grpo": settings}), work) == passes * sum(products)
    some = changed(recipe, {"grpo": {"minibatches": 1, "parameters": "evolved"}, "parameters.lowrank": ["*q_proj*"]})
    gradients = 2 * 4 * (prompt + 10) * sum(p.numel for p in dissect(model, some.parameters).evolved)
    assert flops("grpo", some, work) == 3 * sum(products) + gradients
    evolved = dissect(model, recipe.parameters).evolved
    noise = sum(2 * 2 * sum(p.shape) * 4 * (prompt + 10) for p in evolved)
    update = sum(2 * 2 * p.numel * 2 for p in evolved)
    assert flops("eggroll", recipe, work) == sum(products) + noise + update
