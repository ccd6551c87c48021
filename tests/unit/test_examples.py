"""The examples learn."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("ternary", "at_least"), [(False, 0.6), (True, 0.5)])
def test_threshold_networks_learn_digits_without_a_gradient(
    ternary: bool, at_least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = example("threshold_digits")
    monkeypatch.setattr(digits, "MEMBERS", 256)
    accuracy, gradient = digits.train(seed=0, ternary=ternary, generations=60)
    assert accuracy > at_least  # a guess is right one time in ten
    assert gradient == 0
