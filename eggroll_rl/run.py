"""The folder of one run: the resolved recipe, metrics, samples, the learning curve and the model.

    recipe.yaml  metrics.jsonl  samples.jsonl  learning_curve.png  model/
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from eggroll_rl.config import Recipe, dump_recipe, load_recipe
from eggroll_rl.data import Batch
from eggroll_rl.engines.base import Completion
from eggroll_rl.errors import UsageError
from eggroll_rl.evaluation import Evaluation
from eggroll_rl.progress import Lap
from eggroll_rl.scoring import Scores
from eggroll_rl.update import Update


class RunFolder:
    """Paths and appenders of a run."""

    def __init__(self, path: Path):
        self.path = path
        self.model = path / "model"
        self.curve = path / "learning_curve.png"

    @classmethod
    def create(cls, recipe: Recipe) -> "RunFolder":
        """A new folder with the recipe in it.

        Raises:
            UsageError: the folder exists with something in it; nothing in it is touched.
        """
        path = recipe.output_dir
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UsageError(f"{path} exists and is never overwritten: choose another with output_dir=..., or remove it")
        path.mkdir(parents=True, exist_ok=True)
        dump_recipe(recipe, path / "recipe.yaml")
        return cls(path)

    def recipe(self) -> Recipe:
        return load_recipe(self.path / "recipe.yaml")

    def metrics(self) -> list[dict[str, Any]]:
        """All records so far: those of generations have ``reward_mean``, those of evaluations ``accuracy``."""
        return [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]

    def log_evaluation(self, generation: int, seconds: float, result: Evaluation) -> None:
        self._append("metrics.jsonl", {"generation": generation, "seconds": seconds, **result.summary()})

    def log_generation(
        self,
        update: Update,
        update_rms: float,
        examples: Batch,
        completions: Sequence[Sequence[Completion]],
        scores: Scores,
        lap: Lap,
    ) -> dict[str, Any]:
        """Append the record of a generation and a few of its answers; returns the record."""
        generation = update.population.generation
        rewards_NP = scores.rewards_NP
        rewards_N = rewards_NP.nanmean(1)
        answers = [answer for row in completions for answer in row]
        tokens = sum(len(answer.token_ids) for answer in answers)
        best = int(rewards_N.nan_to_num(nan=-math.inf).argmax())
        record = {
            "generation": generation,
            "reward_mean": _number(rewards_NP.nanmean()),
            "reward_std": _number(rewards_N[~rewards_N.isnan()].std(correction=0)),
            "reward_best_member": _number(rewards_N[best]),
            "rewards": {name: _number(values.nanmean()) for name, values in scores.by_function.items()},
            "reward_failures": scores.failures,
            "finished": sum(answer.finished for answer in answers) / len(answers),
            "tokens": tokens,
            "lr": update.lr,
            "update_rms": update_rms,
            "seconds": lap.total,
            "seconds_generation": lap.seconds,
            "tokens_per_second": tokens / lap.seconds,
        }
        self._append("metrics.jsonl", record)
        for member in dict.fromkeys((0, len(completions) - 1, best)):
            sample = {"generation": generation, "member": member, "prompt": examples.prompts[0]}
            answer, reward = completions[member][0], _number(rewards_NP[member, 0])
            self._append("samples.jsonl", sample | {"completion": answer.text, "reward": reward})
        return record

    def _append(self, name: str, record: dict[str, Any]) -> None:
        with (self.path / name).open("a") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _number(value: Tensor) -> float | None:
    """A number for JSON, which has no NaN."""
    return value.item() if value.isfinite() else None
