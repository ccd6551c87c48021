"""An engine that another package brings: found by its entry point, it walks a recipe's generations."""

import sys
from pathlib import Path

import pytest

from eggroll_rl.config import Recipe
from eggroll_rl.engines.build import build_engine, check_engine, engine_kinds
from eggroll_rl.runs.folder import RunFolder
from eggroll_rl.system.errors import UsageError
from eggroll_rl.train import train

SOURCE = '''
from eggroll_rl.engines.base import Engine
from eggroll_rl.es.rollout import Completion

closed = []


class Parrot(Engine):
    """Members repeat the prompt; odd ones shout. It learns to count its updates."""

    def __init__(self, word):
        self.word, self.updates = word, 0

    @classmethod
    def from_recipe(cls, recipe, blueprint=None):
        return cls(recipe.engine.options["word"])

    def generate(self, prompts, sampling, population=None, members=None):
        members = members or range(population.size if population else 1)
        return [[Completion(self.word * (1 + member % 2), (1,), True) for _ in prompts] for member in members]

    def apply(self, update):
        self.updates += 1
        return 0.5

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass

    def weights_hash(self):
        return f"{self.updates:064x}"

    def save(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "words.txt").write_text(self.word)

    def close(self):
        closed.append(self.updates)
'''
REWARD = "def length(completions, **_):\n    return [float(len(answer)) for answer in completions]\n"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """Of an installed package ``parrots``, as pip leaves it behind."""
    site = tmp_path / "site"
    info = site / "parrots-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: parrots\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[eggroll_rl.engines]\nparrot = parrots:Parrot\nmute = parrots:Mute\n")
    (site / "parrots.py").write_text(SOURCE)
    (tmp_path / "reward.py").write_text(REWARD)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, "parrots", raising=False)
    return Recipe.model_validate(
        {
            "model": "embedded:llama-countdown",
            "engine": {"name": "parrot", "options": {"word": "hello"}},
            "data": {"prompts": 2},
            "rewards": [{"fn": f"{tmp_path}/reward.py:length"}],
            "population": {"size": 4},
            "sampling": {"max_new_tokens": 4},
            "evaluation": {"n": 2},
            "generations": 2,
            "output_dir": str(tmp_path / "run"),
        }
    )


def renamed(recipe: Recipe, name: str) -> Recipe:
    return recipe.model_copy(update={"engine": recipe.engine.model_copy(update={"name": name})})


def test_a_run_in_an_engine_from_outside(recipe: Recipe) -> None:
    run: RunFolder = train(recipe)
    import parrots  # type: ignore[import-not-found]

    assert [record["reward_mean"] for record in run.metrics() if "reward_mean" in record] == [7.5, 7.5]
    assert (run.path / "model" / "words.txt").read_text() == "hello"
    assert parrots.closed == [2]


def test_unknown_engines_and_broken_ones_are_told_of(recipe: Recipe) -> None:
    assert {"parrot", "local", "transformers", "rwkv", "vllm"} <= engine_kinds().keys()
    with pytest.raises(UsageError, match=r"engine.name=parot: no such engine; did you mean 'parrot'\?"):
        check_engine(renamed(recipe, "parot"))
    with pytest.raises(UsageError, match=r"engine.name=mute: parrots:Mute does not load"):
        build_engine(renamed(recipe, "mute"))
