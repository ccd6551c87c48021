"""Evaluate one model on one task: ``eggroll-rl evaluate``."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig

import eggroll_rl
from eggroll_rl.config import DataConfig, EvaluationConfig, Half, Recipe, build_recipe, load_recipe
from eggroll_rl.data.countdown import PROMPT
from eggroll_rl.data.dataset import Batch, load_data
from eggroll_rl.data.encoding import PromptCheck
from eggroll_rl.data.gym import PREFIX
from eggroll_rl.data.sources import is_countable, is_file, is_generated, open_source
from eggroll_rl.engines.base import Engine
from eggroll_rl.engines.build import engine_kind
from eggroll_rl.engines.local.engine import LocalEngine
from eggroll_rl.models.loading import load_config, load_model, load_tokenizer, stored_weights
from eggroll_rl.models.naming import locate_model
from eggroll_rl.runs.evaluation import accuracy_reward, data_hash, evaluate, evaluate_samples
from eggroll_rl.scoring import Scorer
from eggroll_rl.system.errors import UsageError

ANSWER_TAG = ("</answer>",)
GYM = "eggroll_rl.rewards.reasoning_gym:reasoning_gym"
STEPS = "Reason step by step, and end with"


class Task(NamedTuple):
    """The data with the problems, the reward that judges an answer (1 or more is right), and its stop strings."""

    data: DataConfig
    reward: str
    stop: tuple[str, ...] = ()


def _from_hub(name: str, prompt: str, subset: str | None = None) -> DataConfig:
    return DataConfig(name=name, test_name=name, subset=subset, split="test", prompt=prompt)


TASKS = {
    "countdown": Task(DataConfig(), "eggroll_rl.rewards.countdown:countdown", ANSWER_TAG),
    "gsm8k": Task(
        _from_hub("openai/gsm8k", f"{{question}}\n{STEPS} #### and the number.\n", "main"),
        "eggroll_rl.rewards.gsm8k:gsm8k",
    ),
    "math": Task(
        _from_hub("HuggingFaceH4/MATH-500", f"{{problem}}\n{STEPS} the answer in \\boxed{{{{}}}}.\n"),
        "eggroll_rl.rewards.boxed_math:boxed_math",
    ),
}


class Questions(NamedTuple):
    """Changes to a task, by the options of ``eggroll-rl evaluate``; None: no change.

    Attributes:
        data: a dataset's name or a file, all of whose rows are asked.
        subset: the dataset's configuration.
        prompt: a template over the columns, in place of the task's; or
        prompt_column: the column that is the prompt.
        reward: an import string.
        chat: whether the prompt is asked as a user's message of a chat.
    """

    data: str | None = None
    subset: str | None = None
    prompt: str | None = None
    prompt_column: str | None = None
    reward: str | None = None
    chat: bool = False


def evaluate_model(
    model: str,
    task: str | None = None,
    split: str = "test",
    n: int = 512,
    samples: int = 1,
    temperature: float = 1.0,
    max_new_tokens: int | None = None,
    seed: int = 0,
    questions: Questions = Questions(),  # noqa: B008  a tuple of plain values
    base: bool = False,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Greedy accuracy on the first ``n`` problems of a split, and pass@k and maj@k from k = ``samples`` sampled answers
    of each.

    Two evaluations of one model with the same settings agree exactly.

    Args:
        model: Hugging Face folder or name, embedded model, or run folder.
        task: a name in ``TASKS``, or ``reasoning-gym:NAME``; None: a run is asked as it was in training (prompt, stop
            strings, reward), on its own held-out problems or on other data; any other model's task is ``countdown``. A
            run of that task brings its own data ranges, and the half of them that it was judged by.
        split: ``test``, ``train``, or whatever the dataset has.
        temperature: of the sampled answers.
        max_new_tokens: None: the run's, the model's generation config, or 256.
        base: evaluate the base model of a run, in place of its own.
        overrides: ``dotted.key=value`` of the recipe that is evaluated. Its engine is by default the run's own, in its
            precision; without a run transformers (RWKV-7: rwkv) in fp32.

    Returns:
        ``accuracy``, ``low``, ``high`` (Wilson 95 %), ``n``, ``pass@k`` and ``maj@k`` where asked, the hashes of the
        model's weights and of prompts and columns, and the settings.

    Raises:
        UsageError: before a model is loaded.
    """
    _refuse_values(n, samples, temperature, max_new_tokens)
    run = _run_recipe(model)
    if base and run is None:
        raise UsageError(f"{model} is no run folder: only a run has a base model to evaluate")
    if base and run is not None:
        model = run.model
    task_asked = _adapted(_task(task, run, questions), split, questions)
    half = run.evaluation.half if run and questions.data is None and task_asked.data.name == run.data.name else None
    recipe = build_recipe(_recipe(model, run, task_asked, half, max_new_tokens, seed), overrides)
    _refuse_idle(recipe)
    sampled = build_recipe(recipe.model_dump(mode="json"), [f"sampling.temperature={temperature}"]).sampling
    batch = _problems(recipe, split, n)
    with Scorer(recipe.rewards) as scorer:
        scorer.probe(batch.prompts[:1], {name: values[:1] for name, values in batch.columns.items()})
        with _load(recipe) as engine:
            result = evaluate(engine, batch, scorer, recipe.sampling).summary()
            if samples > 1:
                result |= evaluate_samples(engine, batch, scorer, sampled, samples)
            weights = engine.weights_hash()
    return result | {
        "model": model,
        "model_sha256": weights,
        "data_sha256": data_hash(batch),
        "task": task or (recipe.data.name if questions.data is None else None),
        "split": split,
        "half": recipe.evaluation.half,
        "data": recipe.data.model_dump(mode="json", exclude_defaults=True),
        "reward": recipe.rewards[0].fn,
        "engine": recipe.engine.name,
        "dtype": recipe.engine.dtype,
        "max_new_tokens": recipe.sampling.max_new_tokens,
        "stop": list(recipe.sampling.stop),
        "repetition_penalty": recipe.sampling.repetition_penalty,
        "seed": recipe.sampling.seed,
        **({"temperature": temperature} if samples > 1 else {}),
        "version": eggroll_rl.__version__,
    }


def _refuse_values(n: int, samples: int, temperature: float, max_new_tokens: int | None) -> None:
    """Raise UsageError where one of these options of ``evaluate_model`` is out of range."""
    if n < 1 or samples < 1:
        raise UsageError(f"n={n} and k={samples}: both must be at least 1")
    if max_new_tokens is not None and max_new_tokens < 1:
        raise UsageError(f"max_new_tokens={max_new_tokens}: it must be at least 1")
    if samples > 1 and not 0 < temperature < math.inf:
        raise UsageError(f"temperature={temperature}: it must be a number above 0, where samples differ")


def _refuse_idle(recipe: Recipe) -> None:
    """Raise UsageError where settings of a run's evaluations are given, which have options of their own here."""
    options = {"n": "--n", "reward": "--reward", "max_new_tokens": "--max-new-tokens", "every": None, "marks": None}
    for key, option in options.items():
        if getattr(recipe.evaluation, key) != EvaluationConfig.model_fields[key].default:
            raise UsageError(f"evaluation.{key} is of a run: {f'give {option}' if option else 'leave it out'}")


def _recipe(
    model: str, run: Recipe | None, task: Task, half: Half | None, max_new_tokens: int | None, seed: int
) -> dict[str, Any]:
    """The evaluation as a recipe's values, with engine and length of an answer from the run, or else from the model."""
    length = max_new_tokens or (run.held_out_sampling.max_new_tokens if run else _own_length(model)) or 256
    if run:
        engine = run.engine.model_dump() | {"pool": None}  # one is enough
    else:
        engine = {"name": "rwkv" if load_config(model).model_type == "rwkv7" else "transformers"}
    return {
        "model": model,
        "weights": run.weights if run else stored_weights(model),
        "engine": engine,
        "data": task.data.model_dump(mode="json"),
        "rewards": [{"fn": task.reward}],
        "population": {"size": 2},
        "sampling": {
            "max_new_tokens": length,
            "stop": list(task.stop),
            "seed": seed,
            **({"repetition_penalty": run.sampling.repetition_penalty} if run else {}),
        },
        "evaluation": {"half": half},
        **({"parameters": run.parameters.model_dump(mode="json")} if run else {}),
    }


def _own_length(model: str) -> int | None:
    """``max_new_tokens`` of the model's generation config; None: it has none."""
    try:
        return GenerationConfig.from_pretrained(locate_model(model)).max_new_tokens
    except OSError:
        return None


def _task(name: str | None, run: Recipe | None, questions: Questions) -> Task:
    """The task of this name, with the data ranges of a run of it; without a name the run's own, or Countdown."""
    if name is None and run is not None:
        return Task(run.data, accuracy_reward(run).fn, run.sampling.stop)
    if name is None and questions.data is not None:
        if questions.reward is None:
            raise UsageError(f"data {questions.data!r} needs a reward: --reward mine.py:function, or a --task")
        return Task(DataConfig(name=questions.data), questions.reward)
    name = name or "countdown"
    if name.startswith(PREFIX):
        task = Task(DataConfig(name=name), GYM, ANSWER_TAG)
    elif name in TASKS:
        task = TASKS[name]
    else:
        raise UsageError(f"no task {name!r}; there is {', '.join(TASKS)} and {PREFIX}NAME")
    return task._replace(data=run.data) if run is not None and run.data.name == task.data.name else task


def _adapted(task: Task, split: str, questions: Questions) -> Task:
    """The task with the changes that ``questions`` asks for, on this split.

    Raises:
        UsageError: the changes contradict each other, or there is no such split.
    """
    data, stop = task.data, task.stop
    name = questions.data or data.name
    changes: dict[str, Any] = {}
    if questions.data is not None:
        changes = {"name": name, "test_name": name, "subset": questions.subset, "split": "train", "test_split": "test"}
    elif questions.subset is not None:
        raise UsageError(f"subset={questions.subset!r} is one of a dataset: name that with --data")
    is_dataset = not is_generated(name) and not is_file(name)
    if is_dataset and changes.get("test_name", data.test_name) == name:
        changes |= {"split": split, "test_split": split}  # one split is enough
    elif split not in ("train", "test") or (questions.data is not None and split != "test"):
        raise UsageError(f"no split {split!r}; take " + ("test" if questions.data else "train or test"))
    if questions.prompt is not None and questions.prompt_column is not None:
        raise UsageError("prompt and prompt_column: give the template or the column, not both")
    if questions.prompt_column is not None:
        changes |= {"prompt": None}
        if questions.prompt_column != "prompt":
            changes |= {"columns": {**data.columns, "prompt": questions.prompt_column}}
    elif questions.prompt is not None:
        changes |= {"prompt": questions.prompt}
    elif questions.data is not None and data.name == "countdown" and data.prompt is None:
        own = open_source(data.model_copy(update=changes), name, "test_split")[0].get("prompt")
        changes |= {"prompt": PROMPT if own is None else None}  # generated problems bring theirs
    template = changes.get("prompt", data.prompt)
    if questions.chat and not isinstance(template, list):  # a column that is a chat already stays one
        changes |= {"prompt": [{"role": "user", "content": template or "{prompt}"}]}
    return Task(data.model_copy(update=changes), questions.reward or task.reward, stop)


def _run_recipe(model: str) -> Recipe | None:
    path = Path(model) / "recipe.yaml"
    if not path.is_file():
        return None
    recipe = load_recipe(path)
    recipe.refuse_text("an evaluation of answers")
    return recipe


def _problems(recipe: Recipe, split: str, n: int) -> Batch:
    data, check = recipe.data, PromptCheck.of(recipe, load_config(recipe.model), load_tokenizer(recipe.model))
    dataset = load_data(data, 0, check)
    if split == "test" or data.test_name == data.name:
        return dataset.test(n, recipe.evaluation.half)
    each_once = min(n, len(dataset.train)) if is_countable(dataset.train) else n
    return replace(dataset, config=data.model_copy(update={"prompts": each_once})).batch(0)


def _load(recipe: Recipe) -> Engine:
    """The recipe's engine; ``LocalEngine`` without what it needs to learn."""
    kind = engine_kind(recipe.engine.name)
    if not issubclass(kind, LocalEngine):
        return kind.from_recipe(recipe)
    model, tokenizer = load_model(recipe.model, getattr(torch, recipe.engine.dtype), recipe.weights)
    return kind.of_model(recipe, model, tokenizer, learns=False)
