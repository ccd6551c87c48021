"""Recipes: what is read, what is refused, and what the user is told."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from eggroll_rl.config import PopulationConfig, Recipe, Section, build_recipe, dump_recipe, load_recipe
from eggroll_rl.system.errors import UsageError
from eggroll_rl.system.notation import read_yaml, write_yaml
from eggroll_rl.system.shipped import shipped_recipes

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
        ("population.size=4294967296", "population.size: Input should be less than 2147483648"),
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
        "eggroll_rl.config.loading.shipped_recipes", lambda: {"countdown_tiny": tmp_path / "countdown_tiny.yaml"}
    )
    with pytest.raises(UsageError, match="no recipe 'countdown_tny'; did you mean 'countdown_tiny'"):
        load_recipe("countdown_tny")
    with pytest.raises(UsageError, match="give a YAML file or one of: countdown_tiny"):
        load_recipe("something/else.yaml")
    with pytest.raises(UsageError, match="no recipe"):
        load_recipe(tmp_path)


# Values at extremes.


def numeric_fields(section: Any = Recipe, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of all fields of a recipe that hold a number, with what stands there by default."""
    for name, field in section.model_fields.items():
        key = f"{path}{name}"
        kinds = [field.annotation, *get_args(field.annotation)]
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)]
        if inner:
            index = "0." if get_origin(field.annotation) is tuple else ""
            yield from numeric_fields(inner[0], f"{key}.{index}")
        elif get_origin(field.annotation) is not tuple and {int, float} & {
            get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in kinds
        }:
            yield key, field.default


NUMERIC = dict(numeric_fields())
EXTREMES = [0, -1, 1, 2, 10**6, 2**31, 10**9, 10**20, 2**64, 10**400, 1e10, 1e38, 1e300, 1e-38, 1e-300, 5e-324]


def as_large(key: str, value: Any) -> float:
    found: Any = value
    for part in key.split("."):
        found = found[int(part)] if part.isdecimal() else getattr(found, part)
    return float(found)


def test_every_number_of_a_recipe_is_tried() -> None:
    assert len(NUMERIC) > 50
    assert {"population.size", "engine.pool.grace", "grpo.lora_rank", "minutes", "rewards.0.weight"} <= set(NUMERIC)


@pytest.mark.parametrize("key", NUMERIC)
def test_a_number_at_an_extreme_is_plausible_or_refused_by_its_name(recipe: Path, key: str) -> None:
    for value in EXTREMES:
        text = f"{value!r}" if value < 10**300 else "1" + "0" * 400
        base = ["population.antithetic=false", "grpo.minibatches=1"] if key.startswith(("pop", "grpo")) else []
        base += ["retention={data: {}, reward: mine.py:kept}"] if key.startswith("retention") else []
        try:
            loaded = load_recipe(recipe, [*base, f"{key}={text}"])
        except UsageError as error:
            assert "\n" not in str(error)
            assert len(str(error)) < 300
            assert key in str(error) or all(part in str(error) for part in key.split("."))
        else:
            assert key.endswith("seed") or abs(as_large(key, loaded)) <= 10**12
            assert as_large(key, loaded) == 0 or abs(as_large(key, loaded)) > 1e-20 or key in VANISHING
            assert key == "grpo.group" or float(value) == as_large(key, loaded)


# What may be as small as it likes: a share that is left, or a weight that adds nothing.
VANISHING = {
    *("minutes", "optimizer.weight_decay", "optimizer.momentum", "sampling.top_p", "sampling.min_p"),
    *("grpo.weight_decay", "grpo.beta", "grpo.epsilon", "grpo.max_grad_norm", "engine.vllm.gpu_memory_utilization"),
    *("engine.deadline", "optimizer.average", "optimizer.anchor", "retention.reward.weight", "rewards.0.weight"),
}


@pytest.mark.parametrize("device", ["nonsense!", "", "cuda:-1", "cuda:99999", "CPU", "a b"])
def test_what_is_no_device_is_refused(recipe: Path, device: str) -> None:
    with pytest.raises(UsageError, match=r"engine\.device"):
        load_recipe(recipe, [f"engine.device={device!r}"])


# Numbers and paths as users write them.


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(["{:e}", "{:.3e}", "{:E}", "{!r}", "{:.0e}"]))
def test_a_number_is_a_number_however_it_is_written(value: float, form: str) -> None:
    text = form.format(value)
    for written in (text, text.replace("e+", "e"), text.replace("e-0", "e-"), text.replace(".0e", ".e")):
        read = read_yaml(f"options: {{lr: {written}}}")["options"]["lr"]
        assert isinstance(read, float)
        assert read == float(written)


@given(st.recursive(st.text() | st.integers() | st.floats(allow_nan=False) | st.booleans(), st.lists))
@example("1e-3")
@example(["1E5", ".5e3", "-1.e+4", "1e5x", "e5"])
def test_what_is_written_reads_back_the_same(value: Any) -> None:
    try:
        text = write_yaml({"options": value})
        text.encode()
    except UnicodeEncodeError:
        return  # half a character is no text
    assert read_yaml(text) == {"options": value}


def test_numbers_in_options_and_overrides(recipe: Path) -> None:
    loaded = load_recipe(recipe, ["optimizer.lr=1e-3", "data.options={low: 1e-3, high: 2E4}", "data.options.x=3e5"])
    assert loaded.optimizer.lr == 1e-3
    assert loaded.data.options == {"low": 1e-3, "high": 2e4, "x": 3e5}


PATHS = ("output_dir", "model", "data.name", "data.test_name", "rewards.0.fn", "evaluation.reward")


@pytest.mark.parametrize("key", PATHS)
def test_paths_are_those_of_a_shell(recipe: Path, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch")

    def read(value: str) -> str:
        found: Any = load_recipe(recipe, [f"{key}={json.dumps(value)}"])
        for part in key.split("."):
            found = found[int(part)] if part.isdecimal() else getattr(found, part)
        return str(found)

    assert read("~/x") == "/home/me/x"
    assert read("$SCRATCH/x") == read("${SCRATCH}/x") == "/scratch/x"
    for wrong, named in {
        "$NOWHERE_SET/x": r"\$NOWHERE_SET, which is not set",
        "~nobody_known/x": "a user's home that is not known",
        "a\0b": "NUL character",
        "x" * 300: "too long for a file",
        "x/" * 3000: "too long for a file",
    }.items():
        with pytest.raises(UsageError, match=rf"{key}: .*{named}"):
            read(wrong)


def test_a_dumped_recipe_has_the_path_that_was_meant(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    loaded = load_recipe(recipe, ["output_dir=~/runs/x"])
    dump_recipe(loaded, tmp_path / "dumped.yaml")
    monkeypatch.setenv("HOME", "/elsewhere")
    assert load_recipe(tmp_path / "dumped.yaml").output_dir == tmp_path / "runs" / "x"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_recipe("~/dumped.yaml") == loaded


def test_samples_of_one_prompt_need_a_temperature() -> None:
    with pytest.raises(UsageError, match=r"all the same at sampling.temperature 0"):
        build_recipe({"model": "m", "rewards": [{"fn": "m:f"}]}, ["fitness.samples=4"])
    assert build_recipe({"model": "m", "rewards": [{"fn": "m:f"}]}, ["fitness.samples=4", "sampling.temperature=1"])
