"""Evaluate one model on one task: ``eggroll-rl evaluate``."""

from pathlib import Path
from typing import Any

import torch

from eggroll_rl.config import DataConfig, Recipe, RewardConfig, SamplingConfig, load_recipe
from eggroll_rl.data import Batch, load_data
from eggroll_rl.engines.base import Engine
from eggroll_rl.errors import UsageError
from eggroll_rl.evaluation import evaluate, evaluate_pass_at_k
from eggroll_rl.models.loading import load_config, load_model
from eggroll_rl.scoring import Scorer

TASKS = {"countdown": (DataConfig(), RewardConfig(fn="eggroll_rl.rewards.countdown:countdown"), ("</answer>",))}


def evaluate_model(
    model: str,
    task: str = "countdown",
    split: str = "test",
    n: int = 512,
    samples: int = 1,
    temperature: float = 1.0,
    max_new_tokens: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Greedy accuracy on the first ``n`` problems of a split, and pass@k from k = ``samples`` sampled answers of each.

    A run folder brings its own data ranges and sampling; any other model is asked the task's default problems.

    Args:
        model: Hugging Face folder or name, embedded model, or run folder.
        task: a name in ``TASKS``.
        split: ``test``, or ``train``.
        temperature: of the sampled answers.
        max_new_tokens: None: the run's, the model's generation config, or 256.

    Returns:
        ``accuracy``, ``low``, ``high`` (Wilson 95 %), ``n``, ``pass@k`` where asked, and the settings.
    """
    if task not in TASKS:
        raise UsageError(f"no task {task!r}; there is {', '.join(TASKS)}")
    if split not in ("train", "test"):
        raise UsageError(f"no split {split!r}; take train or test")
    if n < 1 or samples < 1:
        raise UsageError(f"n={n} and k={samples}: both must be at least 1")
    if max_new_tokens is not None and max_new_tokens < 1:
        raise UsageError(f"max_new_tokens={max_new_tokens}: it must be at least 1")
    if samples > 1 and temperature <= 0:
        raise UsageError(f"temperature={temperature}: the samples of pass@k differ only above 0")
    data, reward, stop = TASKS[task]
    run = _run_recipe(model)
    if run is not None and run.data.name == task:
        data = run.data
    load_config(model)
    batch = _problems(data, split, n)
    with Scorer([reward]) as scorer:
        scorer.probe(batch.prompts[:1], {name: values[:1] for name, values in batch.columns.items()})
        engine, default_tokens = _load(model)
        if run is not None:
            default_tokens = run.sampling.max_new_tokens
        sampling = SamplingConfig(max_new_tokens=max_new_tokens or default_tokens or 256, stop=stop, seed=seed)
        result = evaluate(engine, batch, scorer, sampling).summary()
        if samples > 1:
            sampled = sampling.model_copy(update={"temperature": temperature})
            result |= evaluate_pass_at_k(engine, batch, scorer, sampled, samples)
    settings = {"task": task, "split": split, "max_new_tokens": sampling.max_new_tokens, "seed": seed}
    return result | {"model": model, **settings, **({"temperature": temperature} if samples > 1 else {})}


def _run_recipe(model: str) -> Recipe | None:
    path = Path(model) / "recipe.yaml"
    return load_recipe(path) if path.is_file() else None


def _problems(data: DataConfig, split: str, n: int) -> Batch:
    if split == "test":
        return load_data(data, seed=0).test(n)
    return load_data(data.model_copy(update={"prompts": n}), seed=0).batch(0)


def _load(name: str) -> tuple[Engine, int | None]:
    """An engine that only answers, and the model's own default length of an answer."""
    from eggroll_rl.engines.rwkv import RWKVEngine
    from eggroll_rl.engines.transformers import TransformersEngine

    model, tokenizer = load_model(name)
    engine = RWKVEngine if model.config.model_type == "rwkv7" else TransformersEngine
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return engine(model.to(device), tokenizer, parameters=None), model.generation_config.max_new_tokens  # type: ignore[arg-type]
