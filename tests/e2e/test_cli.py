"""The command line from outside: what a user types, sees, gets and is told."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import Outcome, eggroll
from safetensors.torch import load_file
from scipy.stats import binomtest
from transformers import AutoModelForCausalLM

from eggroll_rl import cli

ModelFolder = Callable[[str], Path]

REWARDS = '''
def lower(prompts, completions, **columns):
    """Share of lower-case letters in an answer of six tokens."""
    return [min(1.0, sum(map(str.islower, text)) / 6) for text in completions]

def own_letter(prompts, completions, letter, **columns):
    return [float(mine in text) for text, mine in zip(completions, letter)]

def one_short(prompts, completions, **columns):
    return [0.0] * (len(completions) - 1)

def needs_answer(prompts, completions, answer):
    return [0.0] * len(completions)
'''
ROWS = [
    {"prompt": f"{number} + {number + 1} =" + " " * (number % 3), "letter": "abcd"[number % 4]} for number in range(40)
]
RECIPE: dict[str, Any] = {
    "description": "a test [of 3 generations]",
    "data": {"name": "rows.jsonl", "prompts": 2},
    "rewards": [{"fn": "mine.py:lower"}],
    "population": {"size": 8, "sigma": 0.1},
    "optimizer": {"lr": 0.02},
    "sampling": {"max_new_tokens": 6},
    "evaluation": {"n": 3},
    "generations": 3,
    "output_dir": "runs/first",
}
MODEL_FILES = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def desk(folder: Path, model: Path, **changes: Any) -> Path:
    """What a user has in a folder: a recipe, prompts and rewards."""
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"model": str(model)} | RECIPE | changes))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "mine.py").write_text(REWARDS)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.parent.name != "__pycache__")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """The records without what a clock says."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        timed = [key for key in record if key.startswith("seconds") or key == "tokens_per_second"]
        assert timed
        for key in timed:
            assert record.pop(key) >= 0
    return records


@pytest.fixture
def workdir(tmp_path: Path, model_folder: ModelFolder) -> Path:
    return desk(tmp_path, model_folder("llama"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, model_folder: ModelFolder) -> tuple[Path, Outcome]:
    """A folder in which three generations were trained into ``runs/first``, and what was said."""
    folder = desk(tmp_path_factory.mktemp("trained"), model_folder("llama"))
    outcome = eggroll(folder, "train", "recipe.yaml")
    assert outcome.code == 0, outcome.err
    return folder, outcome


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)
    yield


# Mistakes.


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("population.sizee=64", "unknown key 'population.sizee': did you mean 'population.size'?"),
        ("population.size=7", "size 7 is odd, and antithetic members come in pairs: take 8, or antithetic: false"),
        ("fitness.best=5", "fitness.best 5 is more than the population's 4 directions: lower it"),
        ("sampling.stop=['']", "sampling.stop.0: String should have at least 1 character (got '')"),
        ("rewards.0.fn=absent.py:lower", "reward file 'absent.py' does not exist"),
        ("rewards.0.fn=mine.py:lowr", "no 'lowr' in mine.py; did you mean 'lower'?"),
        ("rewards.0.fn=mine.py:one_short", "returned 1 values for 2 completions"),
        ("rewards.0.fn=mine.py:needs_answer", "needs a column 'answer'; the data has prompt, letter"),
        ("evaluation.reward=mine.py:one_short", "returned 1 values for 2 completions"),
        ("data.name=absent.jsonl", "no file absent.jsonl"),
        ("data.prompt='{question}'", "data.prompt names a column 'question' that does not exist"),
        ("model=nowhere/at/all", "no model folder 'nowhere/at/all'"),
        ("model=embedded:zzz", "no embedded model 'zzz'"),
        ("model=.", "'.' holds no config.json"),
        ("parameters.lowrank=['*zzz*']", "no parameter evolves"),
        ("parameters.frozen=[]", "no perturbation is known for model.embed_tokens.weight"),
        ("engine.name=rwkv", "engine rwkv runs RWKV-7 models"),
    ],
)
@pytest.mark.usefixtures("no_weights")
def test_a_mistake_is_one_line_before_anything_is_loaded_or_written(
    workdir: Path, override: str, expected: str
) -> None:
    before = contents(workdir)
    outcome = eggroll(workdir, "train", "recipe.yaml", override)
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert expected in outcome.err
    assert contents(workdir) == before
    assert not (workdir / "runs").exists()


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["train", "countdwn_tiny"], "no recipe 'countdwn_tiny'; did you mean 'countdown_tiny'?"),
        (["plan", "absent.yaml"], "no recipe 'absent.yaml'"),
        (["plan", "recipe.yaml", "generatons=3"], "unknown key 'generatons': did you mean 'generations'?"),
        (["evaluate", "nowhere/at/all"], "no model folder 'nowhere/at/all'"),
        (["evaluate", "MODEL", "--json", "."], ". cannot be written: Is a directory"),
        (["evaluate", "MODEL", "--json", "$NOT_SET/x"], "names $NOT_SET, which is not set"),
        (["bench", "--json", "."], ". cannot be written"),
        (["bench", "--picture", "recipe.yaml/x.png"], "recipe.yaml/x.png cannot be written"),
        (["train", "recipe.yaml", "engine.device=cuda:9999"], "engine.device=cuda:9999: there is none here"),
        (["train", "recipe.yaml", "engine.device=meta"], "engine.device=meta: there is none here"),
        (["train", "recipe.yaml", "output_dir=" + 300 * "x"], "too long for a file"),
        (["train", "recipe.yaml", "sampling.max_new_tokens=2000"], "more than the model's context of 256"),
        (["evaluate", "MODEL", "--task", "cuntdown"], "no task 'cuntdown'; there is countdown"),
        (["evaluate", "MODEL", "--split", "dev"], "no split 'dev'; take train or test"),
        (["evaluate", "MODEL", "--n", "0"], "n=0 and k=1: both must be at least 1"),
        (["evaluate", "MODEL", "--max-new-tokens", "0"], "max_new_tokens=0"),
        (["evaluate", "MODEL", "--k", "2", "--temperature", "-1"], "temperature=-1.0"),
    ],
)
@pytest.mark.usefixtures("no_weights")
def test_other_commands_tell_mistakes_too(
    workdir: Path, model_folder: ModelFolder, args: list[str], expected: str
) -> None:
    before = contents(workdir)
    outcome = eggroll(workdir, *(arg.replace("MODEL", str(model_folder("llama"))) for arg in args))
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert expected in outcome.err
    assert contents(workdir) == before


def test_the_installed_command_says_the_same(workdir: Path) -> None:
    command = [sys.executable, "-m", "eggroll_rl", "train", "recipe.yaml", "population.sizee=64"]
    done = subprocess.run(command, cwd=workdir, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown key 'population.sizee': did you mean 'population.size'?\n"


# A run.


def test_a_run_leaves_everything_in_its_folder(trained: tuple[Path, Outcome], model_folder: ModelFolder) -> None:
    folder, outcome = trained
    run = folder / "runs" / "first"
    kept = yaml.safe_load((run / "recipe.yaml").read_text())
    assert kept["population"]["size"] == 8
    assert kept["model"] == str(model_folder("llama"))
    assert kept["sampling"]["temperature"] == 0.0  # defaults are written out

    records = metrics_of(run)
    assert [record["generation"] for record in records if "reward_mean" in record] == [0, 1, 2]
    marks = [record for record in records if "accuracy" in record]
    assert [mark["generation"] for mark in marks] == [0, 3]
    assert all(mark["n"] == 3 and mark["low"] <= mark["accuracy"] <= mark["high"] for mark in marks)

    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert {sample["generation"] for sample in samples} == {0, 1, 2}
    for sample in samples:  # the user's own reward gave the rewards
        assert sample["reward"] == pytest.approx(min(1.0, sum(map(str.islower, sample["completion"])) / 6))

    assert (run / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in (run / "model").iterdir()} >= MODEL_FILES - {"generation_config.json"}
    before, after = (load_file(f / "model.safetensors") for f in (model_folder("llama"), run / "model"))
    moved = {name for name in before if not before[name].equal(after[name])}
    assert moved == {name for name in before if "proj" in name}
    for mark in marks:
        assert f"generation {mark['generation']}: {mark['accuracy']:.1%} [{mark['low']:.1%}, " in outcome.out
    assert f"{model_folder('llama')} -> runs/first" in outcome.out
    assert outcome.out.splitlines()[-1].endswith("runs/first")


def test_a_run_is_never_overwritten(trained: tuple[Path, Outcome]) -> None:
    folder, _ = trained
    before = contents(folder)
    again = eggroll(folder, "train", "recipe.yaml")
    assert again.code == 2
    assert again.err.startswith("error: runs/first exists and is never overwritten: choose another")
    assert again.err.count("\n") == 1
    assert contents(folder) == before


def test_the_same_seed_is_the_same_run(trained: tuple[Path, Outcome]) -> None:
    folder, _ = trained
    for name, override in (("again", "engine.max_rows=5"), ("other", "seed=1")):
        assert eggroll(folder, "train", "recipe.yaml", f"output_dir=runs/{name}", override).code == 0
    first, again, other = (folder / "runs" / name for name in ("first", "again", "other"))
    assert metrics_of(again) == metrics_of(first) != metrics_of(other)
    assert (again / "samples.jsonl").read_bytes() == (first / "samples.jsonl").read_bytes()
    assert (again / "model" / "model.safetensors").read_bytes() == (first / "model" / "model.safetensors").read_bytes()


def test_columns_weights_and_judges_reach_the_rewards(workdir: Path) -> None:
    rewards = "rewards=[{fn: mine.py:own_letter, weight: 2}, {fn: mine.py:lower}]"
    judge = "evaluation.reward=mine.py:own_letter"
    outcome = eggroll(workdir, "train", "recipe.yaml", "generations=1", rewards, judge)
    assert outcome.code == 0, outcome.err
    run = workdir / "runs" / "first"
    letters = {row["prompt"]: row["letter"] for row in ROWS}
    for line in (run / "samples.jsonl").read_text().splitlines():
        sample = json.loads(line)
        share = min(1.0, sum(map(str.islower, sample["completion"])) / 6)
        assert sample["reward"] == pytest.approx(2 * (letters[sample["prompt"]] in sample["completion"]) + share)
    (record,) = (record for record in metrics_of(run) if "reward_mean" in record)
    assert record["reward_mean"] == pytest.approx(2 * record["rewards"]["own_letter"] + record["rewards"]["lower"])


@pytest.mark.parametrize(("engine", "architecture"), [("transformers", "llama"), ("rwkv", "rwkv7")])
def test_a_run_learns(tmp_path: Path, model_folder: ModelFolder, engine: str, architecture: str) -> None:
    """Lower-case letters, a fifth of the answers at first, become most of them."""
    options = ["data.prompts=4", "population.size=64", "optimizer.lr=0.03", "generations=25", f"engine.name={engine}"]
    outcome = eggroll(desk(tmp_path, model_folder(architecture)), "train", "recipe.yaml", *options)
    assert outcome.code == 0, outcome.err
    records = metrics_of(tmp_path / "runs" / "first")
    rewards = [record["reward_mean"] for record in records if "reward_mean" in record]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.4, rewards
    before, after = [record["accuracy"] for record in records if "accuracy" in record]
    assert before < after


# Evaluation, recipes, plan.


@pytest.mark.parametrize("what", ["a run", "a model"])
def test_evaluate_reports_accuracy_and_pass_at_k(
    trained: tuple[Path, Outcome], model_folder: ModelFolder, tmp_path: Path, what: str
) -> None:
    name = str(trained[0] / "runs" / "first") if what == "a run" else str(model_folder("llama"))
    args = [
        "evaluate",
        name,
        "--task",
        "countdown",
        "--n",
        "6",
        "--k",
        "3",
        "--max-new-tokens",
        "5",
        "--json",
        "results/out.json",
    ]
    outcome = eggroll(tmp_path, *args)
    assert outcome.code == 0, outcome.err
    result = json.loads((tmp_path / "results" / "out.json").read_text())
    interval = binomtest(round(6 * result["accuracy"]), 6).proportion_ci(0.95, method="wilson")
    assert (result["low"], result["high"]) == pytest.approx((interval.low, interval.high))
    asked = {
        "n": 6,
        "model": name,
        "task": "countdown",
        "split": "test",
        "max_new_tokens": 5,
        "seed": 0,
        "temperature": 1.0,
    }
    assert {key: result[key] for key in asked} == asked
    assert result["pass@1"] <= result["pass@2"] <= result["pass@3"] <= 1
    assert outcome.out.startswith(
        f"accuracy {result['accuracy']:.1%} [{interval.low:.1%}, {interval.high:.1%}] of 6  pass@1"
    )


def test_evaluate_without_samples_has_no_pass_at_k(trained: tuple[Path, Outcome], tmp_path: Path) -> None:
    run = str(trained[0] / "runs" / "first")
    options = ["--task", "countdown", "--n", "4", "--split", "train", "--json", "out.json"]
    assert eggroll(tmp_path, "evaluate", run, *options).code == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert not any(key.startswith("pass@") for key in result)
    assert (result["n"], result["split"], result["max_new_tokens"]) == (
        4,
        "train",
        6,
    )  # the run's own length of an answer


def test_recipes_are_listed_with_their_descriptions(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = {"my_recipe": workdir / "recipe.yaml"}
    for module in ("eggroll_rl.config.loading", "eggroll_rl.cli.recipes"):
        monkeypatch.setattr(f"{module}.shipped_recipes", lambda: shipped)
    outcome = eggroll(workdir, "recipes")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.split(maxsplit=1) == ["my_recipe", "a test [of 3 generations]\n"]


@pytest.mark.usefixtures("no_weights")
def test_plan_says_what_a_recipe_would_do(workdir: Path) -> None:
    before = contents(workdir)
    outcome = eggroll(workdir, "plan", "recipe.yaml", "population.size=12")
    assert (outcome.code, outcome.err) == (0, "")
    told = " ".join(outcome.out.split())
    assert "24 per generation: 12 members x 2 prompts" in told
    assert "at most 144 generated per generation (6 each)" in told
    assert "3 generations" in told
    assert contents(workdir) == before


def test_help_names_the_commands() -> None:
    outcome = eggroll(Path.cwd(), "--help")
    assert outcome.code == 0
    assert cli.app.registered_commands
    for command in ("train", "evaluate", "recipes", "plan"):
        assert command in outcome.out
