"""What can be said of a model that searches in streams: what its card states."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eggroll_rl.config import DataConfig, Recipe, RewardConfig, SamplingConfig
from eggroll_rl.data.dataset import load_data
from eggroll_rl.engines.base import Engine
from eggroll_rl.engines.build import build_in_process
from eggroll_rl.es.rollout import Completion, Prompt
from eggroll_rl.eval.evaluate import evaluate_model
from eggroll_rl.runs.evaluation import evaluate
from eggroll_rl.scoring import Scorer

REWARD = RewardConfig(fn="eggroll_rl.rewards.countdown:countdown")
GIVES_UP, CLAIMS = " no.</think>", " yes.</think>"
ROUNDS, LONGEST = 12, 400  # times that a stream is made to go on, and characters after which it no longer is


def measure(folder: Path, data: DataConfig, n: int, samples: int) -> dict[str, Any]:
    """Greedy accuracy with its interval and pass@k on the first ``n`` held-out problems; how often the model gives up
    and how often it says yes, what share of the latter is right, and how good it is made to go on."""
    found = evaluate_model(str(folder), n=n, samples=samples, overrides=[f"data.numbers={list(data.numbers)}"])
    recipe = Recipe(model=str(folder), data=data, rewards=(REWARD,), sampling=SamplingConfig(stop=("</answer>",)))
    batch = load_data(data, 0).test(n)
    with build_in_process(recipe) as engine, Scorer([REWARD]) as grader:
        usual = evaluate(engine, batch, grader, recipe.sampling)
        tireless = evaluate(Tireless(engine), batch, grader, recipe.sampling)
    true = [right for text, right in zip(usual.completions, usual.correct, strict=True) if CLAIMS in text]
    return {
        **found,
        "gives_up": sum(GIVES_UP in text for text in usual.completions) / n,
        "claims": len(true) / n,
        "true_claims": sum(map(bool, true)) / max(1, len(true)),
        "tireless": tireless.accuracy,
    }


class Tireless:
    """The engine's answers, made to go on each time that it gives up, until it has written too much."""

    def __init__(self, engine: Engine):
        self.engine = engine

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingConfig) -> list[list[Completion]]:
        texts, going = [""] * len(prompts), list(range(len(prompts)))
        last: list[Completion] = [Completion("", (), False)] * len(prompts)
        for _ in range(ROUNDS):
            answers = self.engine.generate([f"{prompts[row]}{texts[row]}" for row in going], sampling)[0]
            for row, answer in zip(going, answers, strict=True):
                before, gave_up, _ = answer.text.partition(GIVES_UP)
                texts[row] += f"{before} no. " if gave_up else answer.text
                last[row] = answer._replace(text=texts[row])
            going = [row for row in going if texts[row].endswith(" no. ") and len(texts[row]) < LONGEST]
            if not going:
                break
        return [last]
