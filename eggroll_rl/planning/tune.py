"""sigma and the learning rate of a recipe by short runs: ``eggroll-rl tune RECIPE --minutes M``.

First sigma. The members of several sigmas answer the same prompts, and nothing is learnt. What a step of one sigma's
length gains, at first order, is the spread of the scores of directions times how far other prompts would confirm them
(``es.fitness.Spread``): too small a sigma gives no spread. Too large a one breaks the members: where they earn less
than half of what the unperturbed model does, it is out. Then the rate, by training runs at that sigma, which are judged
by problems that are for tuning alone.

Legend: K pairs, P prompts.
"""

import math
import shutil
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import NamedTuple

from eggroll_rl.config import Recipe, build_recipe
from eggroll_rl.data.dataset import load_data
from eggroll_rl.engines.build import build_engine, check_engine, prompt_check
from eggroll_rl.es.fitness import Spread, by_prompt, spread
from eggroll_rl.es.population import Population
from eggroll_rl.runs.evaluation import score
from eggroll_rl.runs.whitening import whiten
from eggroll_rl.scoring import Scorer
from eggroll_rl.system.errors import NotFinite, UsageError
from eggroll_rl.train import train

SIGMAS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)  # times the recipe's
RATES = (1 / 3, 1.0, 3.0)  # times the recipe's, which goes with its sigma
SHARE = 0.3  # of the time, for sigma

Say = Callable[[str], object]


class SigmaTrial(NamedTuple):
    """A sigma: the mean reward of its members and of the unperturbed model, their signal, and the gain that it
    promises, in reward per step."""

    sigma: float
    reward: float
    unperturbed: float
    signal: float
    gain: float

    @property
    def is_sound(self) -> bool:
        return self.reward >= self.unperturbed - abs(self.unperturbed) / 2


def tune(recipe: Recipe, minutes: float, say: Say) -> list[str]:
    """Overrides of sigma and the rate, and of the held-out problems to evaluate on afterwards, which are not those that
    the rate was chosen by.

    Args:
        minutes: of answers and training; loading and evaluations come on top, and so does what seven generations take
            beyond their share.
        say: is told what was measured.

    Raises:
        UsageError: a mistake in the recipe, the data or a reward.
    """
    recipe.refuse_text("tune")
    trials = measured_sigmas(recipe, 60 * minutes * SHARE)
    for trial in trials:
        say(
            f"population.sigma={trial.sigma:.3g}: reward {trial.reward:.3f} (unperturbed {trial.unperturbed:.3f}), "
            f"signal {trial.signal:+.2f}, promises {trial.gain:.4f}"
        )
    sigma = most_promising(trials, recipe.population.sigma)
    if sigma is None:
        sigma = recipe.population.sigma
        if any(trial.is_sound for trial in trials):
            why = "no sigma promises anything on so few prompts", "give more minutes or data.prompts"
        else:
            why = "every sigma halves the reward of the unperturbed model, or there is none", "lower population.sigma"
        say(f"{why[0]}: it stays {sigma:.3g}; {why[1]}")
    base, each = recipe.optimizer.lr * sigma / recipe.population.sigma, minutes * (1 - SHARE) / len(RATES)
    accuracies: dict[float, float] = {}
    with TemporaryDirectory() as folder:
        for rate in (base * factor for factor in RATES):
            overrides = [*_sigmas(recipe, sigma), f"optimizer.lr={rate}", f"minutes={each}", "evaluation.every=0"]
            overrides += ["evaluation.half=tuning", f"output_dir={Path(folder) / f'{rate:g}'}", "trackers=[]"]
            try:
                run = train(build_recipe(recipe.model_dump(mode="json"), [*overrides, "snapshots.every=0"]))
            except NotFinite as error:
                say(f"optimizer.lr={rate:.3g} is out: {error}")
                continue
            accuracies[rate] = [record["accuracy"] for record in run.metrics() if "accuracy" in record][-1]
            say(f"optimizer.lr={rate:.3g}: held-out accuracy {accuracies[rate]:.1%} after {each:.1f} minutes")
            shutil.rmtree(run.path)
    if not accuracies:
        raise UsageError(f"every rate from {base * RATES[0]:.3g} makes weights that are no numbers: lower optimizer.lr")
    best = max(accuracies, key=lambda rate: (accuracies[rate], -abs(math.log(rate / base))))  # of equals the usual one
    return [*_sigmas(recipe, sigma), f"optimizer.lr={best:.3g}", "evaluation.half=judgement"]


def most_promising(trials: Sequence[SigmaTrial], usual: float) -> float | None:
    """The sigma, of those that break nothing, that promises most, of equals the one nearest to ``usual``; None where
    nothing is promised."""
    sound = [trial for trial in trials if trial.is_sound and trial.gain > 0]
    best = max(sound, key=lambda trial: (trial.gain, -abs(math.log(trial.sigma / usual))), default=None)
    return best.sigma if best else None


def _sigmas(recipe: Recipe, sigma: float) -> list[str]:
    """Overrides of sigma, and in proportion of what it goes to in the end."""
    usual, final = recipe.population.sigma, recipe.population.final_sigma
    ending = [] if final is None else [f"population.final_sigma={final * sigma / usual:.3g}"]
    return [f"population.sigma={sigma:.3g}", *ending]


def measured_sigmas(recipe: Recipe, seconds: float) -> list[SigmaTrial]:
    """What each sigma promises: at least one generation of each, and more of them while the seconds last."""
    data = load_data(recipe.data, recipe.seed, prompt_check(recipe, blueprint := check_engine(recipe)))
    sigmas = [recipe.population.sigma * factor for factor in SIGMAS]
    spreads: dict[float, list[Spread]] = {sigma: [] for sigma in sigmas}
    rewards: dict[float, list[float]] = {sigma: [] for sigma in (0.0, *sigmas)}
    started = time.monotonic()
    with Scorer(recipe.rewards, recipe.scoring) as scorer, build_engine(recipe, blueprint) as engine:
        if recipe.population.whitening is not None:
            whiten(engine, data, recipe.sampling)
        for generation in count():
            examples = data.batch(generation).repeated(recipe.fitness.samples)
            for sigma in (0.0, *sigmas):
                population = Population(recipe.seed, generation, recipe.population, sigma) if sigma else None
                completions = engine.generate(examples.prompts, recipe.sampling, population)
                scores = score(scorer, completions, examples.prompts, examples.columns)
                rewards_NP = by_prompt(scores.rewards_NP, recipe.fitness)
                rewards[sigma].append(rewards_NP.nanmean().item())
                if population:
                    spreads[sigma].append(spread(rewards_NP, recipe.population.antithetic))
            if time.monotonic() - started > seconds * (generation + 1) / (generation + 2):
                break  # another round would be over the time
    known = {sigma: [reward for reward in given if math.isfinite(reward)] for sigma, given in rewards.items()}
    means = {sigma: fmean(given) if given else math.nan for sigma, given in known.items()}
    return [_trial(sigma, means[sigma], means[0.0], spreads[sigma]) for sigma in sigmas]


def _trial(sigma: float, reward: float, unperturbed: float, spreads: Sequence[Spread]) -> SigmaTrial:
    pooled = Spread(spreads[0].prompts, fmean(s.of_scores for s in spreads), fmean(s.of_prompts for s in spreads))
    signal = pooled.signal or 0.0
    gain = max(0.0, signal) * math.sqrt(pooled.of_scores) / pooled.prompts
    return SigmaTrial(sigma, reward, unperturbed, signal, gain)
