"""What can be said of a model that searches in streams: what its card states."""

from pathlib import Path
from typing import Any

from eggroll_rl.config import DataConfig, Recipe
from eggroll_rl.data.dataset import Batch, load_data
from eggroll_rl.engines.base import Engine
from eggroll_rl.engines.build import build_local
from eggroll_rl.eval.evaluate import evaluate_model
from eggroll_rl.rewards.countdown import countdown

REWARD = "eggroll_rl.rewards.countdown:countdown"
GIVES_UP, CLAIMS = " no.</think>", " yes.</think>"
ANSWER = "</answer>"


def measure(folder: Path, data: DataConfig, n: int, samples: int) -> dict[str, Any]:
    """Greedy accuracy with its interval, pass@k, what share of its claims is true, and how good it is where it never
    gives up, on the first ``n`` held-out problems."""
    overrides = [f"data.numbers={list(data.numbers)}"]
    found = evaluate_model(str(folder), n=n, samples=samples, overrides=overrides)
    recipe = Recipe.model_validate(
        {"model": str(folder), "data": data, "rewards": [{"fn": REWARD}], "sampling": {"stop": [ANSWER]}}
    )
    batch = load_data(data, 0).test(n)
    with build_local(recipe) as engine:
        answers = [answer.text for answer in engine.generate(batch.prompts, recipe.sampling)[0]]
        tireless = _never_giving_up(engine, batch, recipe)
    claims = [text for text in answers if CLAIMS in text]
    right = countdown(batch.prompts, answers, numbers=batch.columns["numbers"], target=batch.columns["target"])
    true = [right for text, right in zip(answers, right, strict=True) if CLAIMS in text]
    return {
        **found,
        "gives_up": sum(GIVES_UP in text for text in answers) / len(answers),
        "claims": len(claims) / len(answers),
        "true_claims": sum(map(float, filter(None, true))) / max(1, len(true)),
        "tireless": tireless,
    }


def _never_giving_up(engine: Engine, batch: Batch, recipe: Recipe) -> float:
    """Greedy accuracy where each time that the model gives up it is made to go on, until it has written too much."""
    texts = [""] * len(batch.prompts)
    going = list(range(len(texts)))
    for _ in range(12):
        prompts = [f"{batch.prompts[row]}{texts[row]}" for row in going]
        answers = engine.generate(prompts, recipe.sampling)[0]
        for row, answer in zip(going, answers, strict=True):
            before, gave_up, _ = answer.text.partition(GIVES_UP)
            texts[row] += f"{before} no. " if gave_up else answer.text
        going = [row for row in going if texts[row].endswith(" no. ") and len(texts[row]) < 400]
        if not going:
            break
    columns = batch.columns
    right = countdown(batch.prompts, texts, numbers=columns["numbers"], target=columns["target"])
    return sum(map(float, filter(None, right))) / len(texts)
