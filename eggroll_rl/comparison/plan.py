"""What is compared: methods, seeds and budgets, as a command line describes them."""

import difflib
import json
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Self

from eggroll_rl import grpo
from eggroll_rl.comparison.methods import KEPT, LABELS, Settings, candidates, changed, rollouts_of, settings_of
from eggroll_rl.comparison.schema import VERSION
from eggroll_rl.comparison.search import SearchingEngine
from eggroll_rl.config import Recipe
from eggroll_rl.data.dataset import load_data
from eggroll_rl.engines.build import check_engine, engine_kind, prompt_check
from eggroll_rl.es import fitness
from eggroll_rl.runs.evaluation import accuracy_reward
from eggroll_rl.scoring import Scorer
from eggroll_rl.system.errors import UsageError

MARKS = 8  # parts of the budget, evaluated at the end of each, where the recipe's evaluation.marks is 0
MOST = 1e7  # of minutes, as in a recipe, and of GiB
ENDLESS = 10**9  # generations: time alone ends a run


@dataclass(frozen=True)
class Plan:
    """A comparison: ``trials`` settings of each method are tried first; ``memory`` in GiB is a second budget."""

    name: str
    recipe: Recipe
    minutes: float
    seeds: tuple[int, ...]
    methods: tuple[str, ...]
    memory: float | None = None
    trials: int = 0

    @classmethod
    def from_options(
        cls, name: str, recipe: Recipe, minutes: float | None, seeds: str, methods: str, memory: float | None, tune: int
    ) -> Self:
        """The plan that a command line describes.

        Raises:
            UsageError: naming the option at fault.
        """
        recipe.refuse_text("a comparison")
        budget = recipe.minutes if minutes is None else minutes
        if budget is None:
            raise UsageError("the recipe sets no minutes: give --minutes, the training time of each run")
        for option, value in (("minutes", budget), ("memory", memory)):
            if value is not None and not 0 < value <= MOST:
                raise UsageError(f"--{option} {value:g}: it must be above 0, and {MOST:g} at most")
        if tune < 0:
            raise UsageError(f"--tune {tune}: give a number of trials, 0 for none")
        numbers = [text.strip() for text in seeds.split(",")]
        if not all(text.isascii() and text.isdecimal() and int(text) < 2**31 for text in numbers):
            raise UsageError(f"--seeds {seeds!r}: write whole numbers below 2**31 with commas, as in 0,1,2")
        names = [text.strip() for text in methods.split(",")]
        for unknown in (text for text in names if text not in LABELS):
            near = difflib.get_close_matches(unknown, LABELS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there is {', '.join(LABELS)}"
            raise UsageError(f"--methods: no method {unknown!r}; {hint}")
        for option, given in (("seeds", [int(text) for text in numbers]), ("methods", names)):
            if len(set(given)) < len(given):
                raise UsageError(f"--{option} names one twice: {given}")
        return cls(name, recipe, budget, tuple(map(int, numbers)), tuple(names), memory, tune)

    def document(self) -> dict[str, Any]:
        """What identifies the comparison, as JSON: a folder made for another one is refused."""
        recipe = self.recipe.model_dump(mode="json", exclude={"output_dir", "description", "minutes", "seed"})
        return json.loads(json.dumps({"version": VERSION, **asdict(self), "recipe": recipe}))

    def common(self) -> Recipe:
        """The recipe that all runs share, seed and folder aside; they are judged by the problems that tuning, where
        there is any, has not seen."""
        half = "judgement" if self.trials else self.recipe.evaluation.half
        marks = self.recipe.evaluation.marks or MARKS
        evaluation = {"evaluation.every": 0, "evaluation.marks": marks, "evaluation.half": half}
        time = {"minutes": self.minutes, "generations": ENDLESS}
        return changed(self.recipe, {**time, "snapshots.every": 0, **evaluation})

    def settings_to_try(self, method: str, recipe: Recipe) -> list[Settings]:
        """The settings of a method to try, at most ``trials``; of a batch that fills a budget of memory, none with a
        larger one."""
        fits = (
            settings
            for settings in candidates(method, recipe)
            if self.memory is None or rollouts_of(method, changed(recipe, settings)) <= rollouts_of(method, recipe)
        )
        return list(islice(fits, self.trials))

    def check(self) -> None:
        """Find mistakes before anything runs: what a method cannot do, and what is wrong with the data or a reward.

        Raises:
            UsageError: naming what is at fault.
        """
        common = self.common()
        if self.memory is not None and (common.engine.pool or engine_kind(common.engine.name).has_processes):
            raise UsageError(
                "--memory measures the process that trains, and here others hold models: take engine.name=local and no "
                "engine.pool"
            )
        found: dict[str, int] = {}
        for method in self.methods:
            recipe = changed(common, settings_of(method, common))
            found[method] = len([changed(recipe, settings) for settings in self.settings_to_try(method, recipe)])
            if method != "grpo":
                fitness.check_fitness(recipe.fitness, recipe.population.size, recipe.population.antithetic)
            blueprint = grpo.check_grpo(recipe) if method == "grpo" else check_engine(recipe)
            if method in KEPT:
                SearchingEngine.check_model(recipe, blueprint)
        if min(found.values()) < self.trials:
            told = ", ".join(f"{count} of {LABELS[method]}" for method, count in found.items())
            raise UsageError(
                f"--tune {self.trials}: all methods have as many trials, and of settings to try there are {told}: give "
                f"{min(found.values())} at most"
            )
        data = load_data(common.data, 0, prompt_check(common, blueprint))
        for half in ("judgement", "tuning") if self.trials else (common.evaluation.half,):
            data.test(common.evaluation.n, half)
        first = data.batch(0)
        for rewards in (common.rewards, [accuracy_reward(common)]):
            with Scorer(rewards, common.scoring) as judge:
                judge.probe(first.prompts, first.columns)
