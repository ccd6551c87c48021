"""The examples learn."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from torch import Tensor

from eggroll_rl.models.egg.pretraining import Pretraining
from eggroll_rl.models.loading import load_model

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


def test_an_integer_model_goes_on_where_it_was_and_its_signs_make_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    egg = example("egg_tiny")
    monkeypatch.setattr(egg, "EVERY", 4)
    options = {"members": 32, "width": 16, "layers": 1}

    def weights_of(name: str, follow: bool = False) -> str:
        egg.train(out=tmp_path / name, generations=9, follow=follow, **options)
        return [line for line in capsys.readouterr().out.splitlines() if "generation 9:" in line][-1].split(": ")[1]

    def stop_at_six(self: Pretraining, byte_ST: Tensor, generation: int) -> Tensor:
        if generation == 6:
            raise KeyboardInterrupt
        return fitness(self, byte_ST, generation)

    whole, fitness = weights_of("whole"), Pretraining.fitness
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Pretraining, "fitness", stop_at_six)
        weights_of("cut")
    assert weights_of("cut") == weights_of("cut", follow=True) == weights_of("whole", follow=True) == whole
    assert load_model(str(tmp_path / "whole" / "model"))[0].config.model_type == "egg"
