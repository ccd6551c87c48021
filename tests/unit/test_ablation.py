"""The table of an ablation: its variants, its intervals, and runs that are made once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm, rankdata
from typer import Typer
from typer.testing import CliRunner

from benchmarks import ablation
from benchmarks.ablation import BASE, GROUPS, OWN, RECIPE, correlation, found, table
from eggroll_rl.config import load_recipe


@pytest.mark.parametrize("group", ["choices", "objectives"])
def test_variants_differ_from_the_recipe_and_have_as_many_answers(group: str) -> None:
    recipes = {name: load_recipe(RECIPE, [*BASE, *settings]) for name, settings in GROUPS[group].items()}
    assert next(iter(recipes)) == OWN
    assert {recipe.rollouts for recipe in recipes.values()} == {recipes[OWN].rollouts}
    values = list(recipes.values())
    assert all(one != other for n, one in enumerate(values) for other in values[:n])


def made(right: list[float], signal: float = 0.0) -> dict[str, Any]:
    facts = {"pass@8": 0.75, "greedy": 0.25, "retention": [0.5, 0.125], "drift": 0.01, "step": 1e-3}
    return {"right": right, "signal": signal, "finished": 1.0, **facts}


def test_a_table_has_accuracies_and_differences_from_the_recipe() -> None:
    runs = {OWN: [made([0.5, 0.25]), made([0.5, 0.75])], "other": [made([1.0, 0.75]), made([0.5, 0.75])]}
    head, rule, own, other = (line.strip("| ").split(" | ") for line in table(runs))
    assert len(head) == len(own) == len(other) == "".join(rule).count("|") + 1
    assert (own[0], own[1].split()[0], own[2]) == (OWN, "50.0%", "37.5%, 62.5%")
    assert (other[0], other[1].split()[0], other[3].split()[0]) == ("other", "75.0%", "+25.0")
    assert other[4:7] == ["75.0%", "25.0%", "12.5%"]


def test_of_one_seed_the_interval_is_over_problems() -> None:
    right = np.random.default_rng(0).random(500).round(1)
    value, low, high = found([right.tolist()])
    half = norm.isf(0.025) * right.std(ddof=1) / np.sqrt(500)
    assert (value, low, high) == pytest.approx((right.mean(), right.mean() - half, right.mean() + half), abs=2e-3)
    assert found([right.tolist()], [right.tolist()])[0] == 0
    several = found([right.tolist()] * 3)
    assert several[2] - several[1] == pytest.approx(high - low, rel=0.02), "seeds that agree add no doubt"


def test_the_rank_correlation_is_that_of_ranks() -> None:
    signals, accuracies = [0.1, -0.2, 0.3, 0.0, 0.25], [0.4, 0.1, 0.35, 0.2, 0.5]
    runs = {str(n): [made([a, a], s)] for n, (s, a) in enumerate(zip(signals, accuracies, strict=True))}
    rho = np.corrcoef(rankdata(signals), rankdata(accuracies))[0, 1]
    assert f"over 5 settings: {rho:+.2f}" in correlation(runs)


def test_what_is_done_is_not_made_again_and_what_was_cut_short_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ["population.size=8", "data.prompts=2", "evaluation.n=6", "retention.n=4", "sampling.max_new_tokens=24"]
    options = ["--generations", "2", "--only", OWN, *(word for one in small for word in ("--set", one))]
    app = Typer()
    app.command()(ablation.main)

    def row() -> str:
        outcome = CliRunner().invoke(app, [str(tmp_path), *options])
        assert outcome.exit_code == 0, outcome.output
        return outcome.stdout.splitlines()[-1]

    first = row()
    assert first.startswith(f"| {OWN} |")
    (run,) = (tmp_path / "2-generations").iterdir()
    weights = (run / "model" / "model.safetensors").read_bytes()
    (run / "judged.json").unlink()
    monkeypatch.setattr(ablation.train, "train", None)  # it would begin anew
    assert row() == first
    monkeypatch.setattr(ablation, "judge", None)
    assert row() == first
    other = CliRunner().invoke(app, [str(tmp_path), *options, "--set", "population.sigma=0.01"])
    assert "other settings" in str(other.exception)
    assert (run / "model" / "model.safetensors").read_bytes() == weights
