"""`eggroll-rl compare` and `eggroll-rl grpo` from outside, with budgets of seconds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import eggroll

ModelFolder = Callable[[str], Path]

REWARD = '''
def lower(prompts, completions, letter, **columns):
    """Share of lower-case letters in an answer of six tokens; of no account where the letter is d."""
    return [None if mine == "d" else sum(map(str.islower, text)) / 6 for text, mine in zip(completions, letter)]
'''
RECIPE: dict[str, Any] = {
    "data": {"name": "rows.jsonl", "prompts": 2, "test_name": "rows.jsonl"},
    "rewards": [{"fn": "mine.py:lower"}],
    "population": {"size": 8, "sigma": 0.1},
    "optimizer": {"lr": 0.02},
    "grpo": {"prompts": 2, "group": 4, "minibatches": 1, "lr": 1e-3},
    "sampling": {"max_new_tokens": 6},
    "evaluation": {"n": 12},
}
METHODS = ("eggroll", "grpo", "openes", "random", "randopt")


@pytest.fixture
def workdir(tmp_path: Path, model_folder: ModelFolder) -> Path:
    rows = [{"prompt": f"{n} + {n + 1} =", "letter": "abcd"[n % 4]} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.py").write_text(REWARD)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"model": str(model_folder("llama")), **RECIPE}))
    return tmp_path


@pytest.mark.slow
def test_a_comparison_from_start_to_end(workdir: Path) -> None:
    out = workdir / "out"
    options = ("--minutes", "0.02", "--seeds", "3", "--methods", ",".join(METHODS), "--output", "out")
    outcome = eggroll(workdir, "compare", "recipe.yaml", *options)
    assert outcome.code == 0, outcome.err
    result = json.loads((out / "compare.json").read_text())
    assert outcome.out.strip().endswith(result["conclusion"])
    assert result["conclusion"].startswith("After 0.02 minutes of training each, ")
    assert [run["method"] for run in result["runs"]] == list(METHODS)
    for run in result["runs"]:
        records = [json.loads(line) for line in (out / run["folder"] / "metrics.jsonl").open()]
        generations = [record for record in records if "reward_mean" in record]
        rows = 8 if run["method"] == "grpo" else 16
        assert run["generations"] == len(generations)
        assert run["updates"] == (0 if run["method"].startswith("rand") else len(generations))
        assert run["rollouts"] == rows * len(generations)
        assert run["tokens"] == sum(record["tokens"] for record in generations)
        assert run["seconds_training"] > max((r["seconds"] for r in generations[:-1]), default=0.0)
        assert max((r["seconds"] for r in generations[:-1]), default=0.0) < 1.2
        assert run["seconds_total"] > run["seconds_training"] + run["seconds_loading"]
        assert run["evaluations"][0]["mark"] == 0
        assert run["evaluations"][-1] == run["evaluations"][-1] | {"mark": 8, "accuracy": run["accuracy"]}
        judged = [right for right in run["correct"] if right is not None]
        assert len(run["correct"]) == 12
        assert run["n"] == len(judged) < 12
        assert run["accuracy"] == sum(judged) / len(judged)
        assert run["drift"] > 0
        assert run["peak_memory_gib"] > 0.05
        assert (out / run["folder"] / "model" / "config.json").is_file()
    openes = next(summary for summary in result["summaries"] if summary["method"] == "openes")
    assert len(openes["settings"]["parameters.dense"]) == 14
    assert {test["seed"] for test in result["tests"]} == {None, 3}
    files = {path.name for path in out.iterdir()}
    assert {"compare.md", "curves_time.png", "curves_rollouts.png", "report.html"} <= files

    # What is finished stays, and what was cut short is moved aside and begun anew.
    torn = out / "runs" / "grpo-3"
    (torn / "result.json").unlink()
    finished = {path: path.read_bytes() for path in out.glob("runs/*es-3/**/*") if path.is_file()}
    assert finished
    assert eggroll(workdir, "compare", "recipe.yaml", *options).code == 0
    assert {path: path.read_bytes() for path in finished} == finished
    assert (torn / "result.json").is_file()
    assert (torn.with_name("grpo-3.unfinished-1") / "metrics.jsonl").is_file()
    other = eggroll(workdir, "compare", "recipe.yaml", "optimizer.lr=0.5", *options)
    assert other.code == 2
    assert other.err.startswith("error: out holds a comparison with recipe.optimizer.lr ")
    assert "(now 0.5)" in other.err
    resumed = eggroll(workdir, "train", "--resume", str(torn))
    assert resumed.code == 2
    assert "is a GRPO run, which keeps no journal: it cannot be resumed" in resumed.err


def test_mistakes_are_one_line(workdir: Path) -> None:
    refused = eggroll(workdir, "compare", "recipe.yaml", "--minutes", "0", "--output", "out")
    assert (refused.code, refused.err) == (2, "error: --minutes 0: it must be above 0, and 1e+07 at most\n")
    assert not (workdir / "out").exists()
    options = ("--minutes", "0.02", "--seeds", "3", "--methods", "eggroll", "--output", "out")
    failed = eggroll(workdir, "compare", "recipe.yaml", "rewards.0.fn=mine.py:lowr", *options)
    assert failed.code == 2
    assert len(failed.err.splitlines()) == 1
    assert "no 'lowr' in mine.py; did you mean 'lower'?" in failed.err
