"""Recipes: what is read, what is refused, and what the user is told."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from eggroll_rl.config import PopulationConfig, Recipe, dump_recipe, load_recipe, shipped_recipes
from eggroll_rl.system.errors import UsageError

RECIPE = """
model: some/model
rewards:
  - fn: eggroll_rl.rewards.text:exact
  - fn: mine.py:short
    weight: 0.1
population: {size: 64, sigma: 1e-3}
data:
  name: rows.jsonl
  prompt:
    - {role: user, content: "{question}"}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def test_values_defaults_and_overrides(recipe: Path) -> None:
    loaded = load_recipe(
        recipe,
        [
            "population.sigma=2e-4",
            "rewards.1.weight=0.5",
            "rewards.0.fn=eggroll_rl.rewards.text:contains",
            "data.numbers=3",
            "sampling.stop=['\\n', '</answer>']",
            "data.prompt.0.content='{question} ='",
            " generations = 7",
        ],
    )
    assert loaded.population == PopulationConfig(size=64, sigma=2e-4)
    assert [(reward.fn, reward.weight) for reward in loaded.rewards] == [
        ("eggroll_rl.rewards.text:contains", 1.0),
        ("mine.py:short", 0.5),
    ]
    assert loaded.data.numbers == (3,)
    assert loaded.data.prompt == [{"role": "user", "content": "{question} ="}]
    assert loaded.sampling.stop == ("\\n", "</answer>")
    assert loaded.generations == 7
    assert loaded.optimizer.name == "adam"


def test_yaml_exponents_without_a_dot_are_numbers(recipe: Path) -> None:
    assert load_recipe(recipe).population.sigma == 0.001


def test_an_empty_section_can_be_filled_by_overrides(recipe: Path) -> None:
    recipe.write_text("model: m\nrewards: [{fn: 'a:b'}]\npopulation:\n")
    assert load_recipe(recipe, ["population.size=8"]).population.size == 8


def test_round_trip(recipe: Path, tmp_path: Path) -> None:
    loaded = load_recipe(recipe, ["seed=18446744073709551615", "description='é: 1e-3'", "optimizer.lr=3.3e-7"])
    dump_recipe(loaded, tmp_path / "dumped.yaml")
    assert load_recipe(tmp_path / "dumped.yaml") == loaded


def test_a_recipe_never_changes(recipe: Path) -> None:
    with pytest.raises(ValidationError):
        load_recipe(recipe).seed = 3


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("population.sizee=64", "unknown key 'population.sizee': did you mean 'population.size'?"),
        ("populaton.size=64", "unknown key 'populaton': did you mean 'population'?"),
        ("rewards.1.wieght=2", "unknown key 'rewards.1.wieght': did you mean 'rewards.1.weight'?"),
        ("population.zzz=64", "the keys there are size, rank, sigma"),
        ("population.size=63", "size 63 is odd, and antithetic members come in pairs: take 64, or antithetic: false"),
        ("population.size=many", "population.size: Input should be a valid integer"),
        ("population.size=", "population.size: Input should be a valid integer"),
        ("population.size=4294967296", "at most 2**31 - 1 members"),
        ("population.sigma=0", "population.sigma: Input should be greater than 0 (got 0)"),
        ("population.sigma=.inf", "population.sigma: Input should be a finite number"),
        ("population.sigma=.nan", "population.sigma: Input should be a finite number"),
        ("optimizer.betas=[0.9, 1.0]", "optimizer.betas.1: Input should be less than 1"),
        ("optimizer.name=lion", "'sgd', 'adam' or 'adamw'"),
        ("rewards=[]", "at least 1 item"),
        ("seed=-1", "seed: Input should be greater than or equal to 0 (got -1)"),
        ("population", "override 'population' has no '='; write key=value"),
        ("population.size.x=1", "no key 'x' under 'population.size', which holds the plain value 64"),
        ("population.size.x.y=1", "no key 'x' under 'population.size', which holds the plain value 64"),
        ("rewards.2.fn=a:b", "no item '2' in 'rewards': its 2 items are numbered from 0"),
        ("rewards.-1.fn=a:b", "no item '-1' in 'rewards'"),
        ("rewards.fn=a:b", "no item 'fn' in 'rewards'"),
        ("rewards.2=a:b", "no item '2' in 'rewards'"),
        ("sampling.stop=[a", "override 'sampling.stop=[a': the value is not valid YAML"),
        ("=3", "unknown key ''"),
    ],
)
def test_a_wrong_override_is_named(recipe: Path, override: str, expected: str) -> None:
    with pytest.raises(UsageError) as error:
        load_recipe(recipe, [override])
    assert expected in str(error.value)


def test_odd_populations_without_pairs(recipe: Path) -> None:
    assert load_recipe(recipe, ["population.size=63", "population.antithetic=false"]).population.size == 63


def test_every_error_is_told_at_once(recipe: Path) -> None:
    with pytest.raises(UsageError) as error:
        load_recipe(recipe, ["population.sizee=64", "generations=0"])
    assert "population.sizee" in str(error.value)
    assert "generations" in str(error.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"model: [unclosed", "not valid YAML"),
        (b"model: \xff\xfe\x00", "not valid YAML"),
        (b"- model", "a recipe is a mapping such as 'model: name', not a list"),
        (b"model", "not a str"),
        (b"", "'model' is missing; 'rewards' is missing"),
        (b"model: m\nrewards: [{weight: 1}]", "'rewards.0.fn' is missing"),
        (b"model: m\nrewards: [{fn: 'a:b'}]\npopulation: 64", "population: "),
        (b"1: 2", "1: "),
    ],
)
def test_a_wrong_file_is_named(recipe: Path, content: bytes, expected: str) -> None:
    recipe.write_bytes(content)
    with pytest.raises(UsageError) as error:
        load_recipe(recipe)
    assert expected in str(error.value)


def test_shipped_recipes_are_valid_and_found_by_name() -> None:
    for name in shipped_recipes():
        assert isinstance(load_recipe(name), Recipe)


def test_an_unknown_recipe_names_the_nearest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        "eggroll_rl.config.shipped_recipes", lambda: {"countdown_tiny": tmp_path / "countdown_tiny.yaml"}
    )
    with pytest.raises(UsageError, match="no recipe 'countdown_tny'; did you mean 'countdown_tiny'"):
        load_recipe("countdown_tny")
    with pytest.raises(UsageError, match="give a YAML file or one of: countdown_tiny"):
        load_recipe("something/else.yaml")
    with pytest.raises(UsageError, match="no recipe"):
        load_recipe(tmp_path)
