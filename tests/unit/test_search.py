"""Random search: who is kept, how the kept ones vote, and that the saved model is the best of them.

Legend: N members.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.tiny_task import write_task
from eggroll_rl.comparison.contender import train_and_judge
from eggroll_rl.comparison.methods import KEPT, TRIED_ON, candidates, changed, note_of, rollouts_of, settings_of
from eggroll_rl.comparison.search import SearchingEngine
from eggroll_rl.config import PopulationConfig, Recipe, SamplingConfig, load_recipe
from eggroll_rl.data.dataset import load_data
from eggroll_rl.engines.base import Engine
from eggroll_rl.engines.build import build_in_process, check_engine
from eggroll_rl.es.population import Population
from eggroll_rl.es.rollout import Completion
from eggroll_rl.es.update import Update
from eggroll_rl.runs.evaluation import accuracy_reward
from eggroll_rl.scoring import Scorer
from eggroll_rl.system.errors import UsageError

METHODS = sorted(KEPT)


class Parrot(Engine):
    """Each member says its number and its generation's; nothing learns."""

    def generate(
        self, prompts: Any, sampling: Any, population: Population | None = None, members: range | None = None
    ) -> list[list[Completion]]:
        assert population is not None
        assert members is not None
        name = f"<answer>{population.generation}.{members.start}</answer>"
        return [[Completion(name, (), True)] * len(prompts)]


def updates(weights: Sequence[Sequence[int]], config: PopulationConfig) -> list[Update]:
    return [Update(Population(0, g, config), tuple(map(float, one)), 1.0) for g, one in enumerate(weights)]


@given(
    st.integers(1, 3).flatmap(
        lambda reuse: st.tuples(
            st.just(reuse), st.lists(st.lists(st.integers(-3, 3), min_size=4, max_size=4), min_size=1, max_size=8)
        )
    ),
    st.integers(1, 5),
)
def test_the_best_by_all_generations_of_their_noise_are_kept(drawn: tuple[int, list[list[int]]], kept: int) -> None:
    reuse, weights = drawn
    engine = SearchingEngine(Parrot(), kept)
    for update in updates(weights, PopulationConfig(size=4, noise_reuse=reuse)):
        assert engine.apply(update) == 0
    sums = {
        (first, member): sum(one[member] for one in weights[first : first + reuse])
        for first in range(0, len(weights), reuse)
        for member in range(4)
    }
    expected = sorted(sums, key=lambda who: -sums[who])[:kept]
    assert [(one.population.generation, one.member) for one in engine.best()] == expected
    if kept == 1:
        (answers,) = engine.generate(["a", "b"], SamplingConfig())
        assert [answer.text for answer in answers] == [f"<answer>{expected[0][0]}.{expected[0][1]}</answer>"] * 2


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    overrides = ["generations=5", "snapshots.every=0", "data.prompts=4", f"output_dir={tmp_path / 'run'}"]
    return load_recipe(write_task(tmp_path), [*overrides, "population.rank=2", "evaluation.every=0"])


def search_of(method: str, recipe: Recipe) -> Recipe:
    return changed(recipe, {**settings_of(method, recipe), "population.noise_reuse": 2})


def test_the_saved_model_is_the_best_member_and_the_base_stays(recipe: Recipe, tmp_path: Path) -> None:
    recipe = search_of("random", recipe)
    sampling, prompts = recipe.sampling, load_data(recipe.data, 0).batch(0).prompts
    engine = SearchingEngine(build_in_process(recipe), 1)
    before = engine.weights_hash()
    weights = [0.0] * recipe.population.size
    weights[5] = 1.0
    population = Population(recipe.seed, 3, recipe.population)
    engine.apply(Update(population, tuple(weights), 1.0))
    engine.save(tmp_path / "best")
    assert engine.weights_hash() == before
    saved = build_in_process(changed(recipe, {"model": str(tmp_path / "best")}))
    assert saved.weights_hash() != before
    (expected,) = engine.generate(prompts, sampling, population, range(5, 6))
    assert engine.generate(prompts, sampling) == [expected]
    assert [answer.text for answer in saved.generate(prompts, sampling)[0]] == [answer.text for answer in expected]
    assert expected != engine.generate(prompts, sampling, population, range(4, 5))[0]


@pytest.mark.parametrize("method", METHODS)
def test_a_run_finds_what_is_better_than_the_base_by_training_rewards_alone(method: str, recipe: Recipe) -> None:
    recipe = search_of(method, recipe)
    with build_in_process(recipe) as engine, Scorer(recipe.rewards) as scorer:
        batch = load_data(recipe.data, recipe.seed).batch(0)
        base = engine.generate(batch.prompts, recipe.sampling)[0]
        reward = scorer([[answer.text for answer in base]], batch.prompts, batch.columns).rewards_NP.mean()
    found = train_and_judge(method, recipe, 2, 0.0)
    assert found["updates"] == 0
    assert found["rollouts"] == 5 * 32 * 4
    assert found["drift"] > 0
    assert set(found["pass_at_k"]) == {"pass@1", "pass@2"}
    assert set(found["maj_at_k"]) == {"maj@2"}
    last = found["evaluations"][-1]
    assert found["accuracy"] == last["accuracy"], "the run's last evaluation is of what is judged"
    with (
        Scorer([accuracy_reward(recipe)]) as scorer,
        build_in_process(changed(recipe, {"model": str(recipe.output_dir / "model")})) as engine,
    ):
        answers = engine.generate(batch.prompts, recipe.sampling)[0]
        assert scorer([[a.text for a in answers]], batch.prompts, batch.columns).rewards_NP.mean() > reward


@pytest.mark.parametrize("method", METHODS)
def test_settings_of_random_search(method: str, recipe: Recipe) -> None:
    chosen = changed(recipe, settings_of(method, recipe))
    assert chosen.population.noise_reuse * chosen.data.prompts >= TRIED_ON
    assert chosen.population.final_sigma is None
    assert rollouts_of(method, chosen) == rollouts_of("eggroll", recipe)
    assert f"tried on {TRIED_ON} prompts" in note_of(method, recipe)
    tried = [changed(chosen, settings) for settings in candidates(method, chosen)]
    assert tried[0] == chosen
    assert all(one != other for n, one in enumerate(tried) for other in tried[:n])
    assert {one.population.sigma for one in tried[:3]} == {chosen.population.sigma * f for f in (1, 3, 1 / 3)}


def test_integers_are_not_searched(recipe: Recipe) -> None:
    with pytest.raises(UsageError, match="set weights=float"):
        SearchingEngine.check_model(recipe.model_copy(update={"weights": "int8"}), check_engine(recipe))
