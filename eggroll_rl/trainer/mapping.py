"""From the options of ``EggrollConfig`` to a recipe."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eggroll_rl.config import Recipe, build_recipe
from eggroll_rl.system.errors import UsageError
from eggroll_rl.trainer.config import EggrollConfig
from eggroll_rl.trainer.loading import dtype_of
from eggroll_rl.trainer.options import Kind, changed, options

OPTIMIZERS = {
    **dict.fromkeys(("adamw_torch_fused", "adamw_torch", "adamw"), "adamw"),
    **dict.fromkeys(("adamw_8bit", "paged_adamw_8bit", "adamw_bnb_8bit", "paged_adamw_32bit"), "adamw"),  # in full here
    "adam": "adam",
    "sgd": "sgd",
}
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant", "constant_with_warmup": "constant"}
GENERATION = {  # keys of ``generation_kwargs`` -> of the recipe's section sampling
    **{
        name: name
        for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens", "stop")
    },
    "max_tokens": "max_new_tokens",
    "stop_strings": "stop",
}
TRACKERS = ("tensorboard", "wandb", "trackio")
Values = dict[str, Any]


def recipe_of(
    args: EggrollConfig,
    model: str,
    stored_dtype: Callable[[], str],
    rewards: Sequence[str],
    train: Path,
    rows: int,
    held_out: Path | None,
    held_out_rows: int,
) -> Recipe:
    """The recipe of a trainer.

    Args:
        args: its options.
        model: name or folder.
        stored_dtype: what its weights are stored in.
        rewards: import strings, or ``given:NAME``.
        train: the file of the training rows, so many ``rows``.
        held_out: that of the rows to evaluate on; None: accuracy is measured on the first training rows.
        held_out_rows: how many are asked.

    Raises:
        UsageError: an option has a value that it cannot have, named as the option and as the recipe's key.
    """
    prompts = prompts_per_generation(args)
    epoch = max(1, rows // prompts)
    generations = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * epoch)
    chosen = {name: getattr(args, name) for name in ("lowrank", "dense", "frozen")}
    values: Values = {
        "model": model,
        "output_dir": str(args.output_dir),
        "engine": engine_of(args, stored_dtype),
        "data": {
            "name": str(train),
            "test_name": str(held_out or train),
            "prompts": prompts,
            "system": args.system,
            "chat_template": kwargs_of(args, "chat_template_kwargs"),
        },
        "rewards": [{"fn": fn, "weight": weight} for fn, weight in zip(rewards, weights(args, rewards), strict=True)],
        "scoring": {"timeout": args.reward_timeout, "on_error": args.reward_on_error},
        "population": {
            "size": args.population_size,
            **{
                name: getattr(args, name)
                for name in ("sigma", "rank", "antithetic", "noise", "noise_reuse", "whitening")
            },
        },
        "parameters": {name: list(globs) for name, globs in chosen.items() if globs is not None},
        "fitness": {"shaping": args.fitness_shaping, "best": args.fitness_best},
        "optimizer": {
            "name": one_of(OPTIMIZERS, "optim", args.optim),
            "lr": args.learning_rate,
            "momentum": args.momentum,
            "betas": [args.adam_beta1, args.adam_beta2],
            "weight_decay": args.weight_decay,
            "schedule": one_of(SCHEDULES, "lr_scheduler_type", args.lr_scheduler_type),
            "warmup": share_or_count(args.warmup_steps, generations),
        },
        "sampling": sampling_of(args),
        "evaluation": {
            "n": held_out_rows,
            "every": every(args, "eval", args.eval_steps or args.logging_steps, epoch, generations),
            "reward": args.eval_reward,
        },
        "snapshots": {
            "every": every(args, "save", args.save_steps, epoch, generations),
            **({} if args.save_total_limit is None else {"keep": args.save_total_limit}),
        },
        "trackers": trackers_of(args),
        "generations": generations,
        "minutes": args.minutes,
        "seed": args.seed,
    }
    with by_options():
        return build_recipe(values, args.overrides)


def prompts_per_generation(args: EggrollConfig) -> int:
    """How many prompts a step learns from: as many as one of GRPO with the same batch.

    Raises:
        UsageError: the batch does not divide into groups.
    """
    if args.prompts_per_generation is not None:
        return args.prompts_per_generation
    batch, group = args.per_device_train_batch_size * args.gradient_accumulation_steps, args.num_generations
    if group < 1 or batch < 1 or batch % group:
        raise UsageError(
            f"per_device_train_batch_size {args.per_device_train_batch_size} x gradient_accumulation_steps "
            f"{args.gradient_accumulation_steps} is {batch}, which does not divide into groups of num_generations="
            f"{group}: change one of the three, or set prompts_per_generation"
        )
    return batch // group


def engine_of(args: EggrollConfig, stored_dtype: Callable[[], str]) -> Values:
    """The section ``engine``."""
    if args.use_vllm and args.engine not in ("local", "vllm"):
        raise UsageError(f"use_vllm=True and engine={args.engine!r}: name one of the two")
    vllm = {
        "gpu_memory_utilization": args.vllm_gpu_memory_utilization,
        "max_model_len": args.vllm_max_model_length,
        "tensor_parallel_size": args.vllm_tensor_parallel_size,
    }
    device = {"device": "cpu"} if args.use_cpu else {}
    return {
        "name": "vllm" if args.use_vllm else args.engine,
        "dtype": dtype_of(args, stored_dtype),
        **device,
        "vllm": vllm,
    }


def sampling_of(args: EggrollConfig) -> Values:
    """The section ``sampling``."""
    values: Values = {
        "max_new_tokens": args.max_completion_length,
        "temperature": args.temperature,
        "top_p": args.top_p,
        "top_k": args.top_k,
        "min_p": args.min_p or 0.0,
        "repetition_penalty": args.repetition_penalty,
        "stop": list(args.stop),
    }
    if args.max_completion_length is None:
        raise UsageError("max_completion_length=None: an answer needs an end, give it a number of tokens")
    given = kwargs_of(args, "generation_kwargs")
    does_sample = given.pop("do_sample", None)
    for name, value in given.items():
        if name not in GENERATION:
            raise UsageError(
                f"generation_kwargs: {name}={value!r} has no meaning here; there are {', '.join(GENERATION)}"
            )
        values[GENERATION[name]] = [value] if GENERATION[name] == "stop" and isinstance(value, str) else value
    if does_sample is not None and does_sample != (values["temperature"] > 0):
        raise UsageError(
            f"generation_kwargs: do_sample={does_sample!r} and temperature={values['temperature']}: a temperature of 0 "
            "takes the likeliest token, one above 0 samples; change one of the two"
        )
    return values


def kwargs_of(args: EggrollConfig, name: str) -> Values:
    """A copy of an option that is a mapping."""
    return dict(getattr(args, name) or {})


def weights(args: EggrollConfig, rewards: Sequence[str]) -> list[float]:
    """The weight of each reward."""
    given = args.reward_weights or [1.0] * len(rewards)
    if len(given) != len(rewards):
        raise UsageError(f"reward_weights has {len(given)} numbers for {len(rewards)} reward functions: give one each")
    return given


def every(args: EggrollConfig, prefix: str, steps: float, epoch: int, generations: int) -> int:
    """Generations from one evaluation (``eval``) or snapshot (``save``) to the next; 0: none."""
    name = f"{prefix}_strategy"
    strategy = str(getattr(getattr(args, name), "value", getattr(args, name)))
    counts = {"no": 0, "steps": share_or_count(steps, generations), "epoch": epoch}
    if strategy not in counts:
        raise UsageError(f"{name}={strategy!r}: there are {', '.join(counts)}")
    return counts[strategy]


def share_or_count(steps: float, of: int) -> int:
    """A number of steps, or below 1 a share of all, as transformers has them."""
    return math.ceil(steps * of) if 0 < steps < 1 else int(steps)


def trackers_of(args: EggrollConfig) -> list[Values]:
    """The section ``trackers``."""
    names = [args.report_to] if isinstance(args.report_to, str) else list(args.report_to or [])
    wanted = [name for name in names if name != "none"]
    unknown = [name for name in wanted if name not in TRACKERS]
    if unknown:
        raise UsageError(f"report_to={unknown[0]!r}: there are {', '.join(TRACKERS)} and none")
    named = {} if args.run_name is None else {"name": args.run_name}
    space = {} if args.trackio_space_id is None else {"space_id": args.trackio_space_id}
    own = {"tensorboard": {}, "wandb": named, "trackio": named | space}
    return [{"name": name, "project": args.project, "options": own[name]} for name in wanted]


def one_of(known: Mapping[str, str], name: str, value: Any) -> str:
    """What an option's value is called in a recipe.

    Raises:
        UsageError: it is none of the known.
    """
    text = str(getattr(value, "value", value))
    if text not in known:
        raise UsageError(f"{name}={text!r}: there are {', '.join(known)}")
    return known[text]


@contextmanager
def by_options() -> Iterator[None]:
    """Have an error that names keys of the recipe name the options, too, that set them."""
    try:
        yield
    except UsageError as error:
        setters: dict[str, list[str]] = {}
        for option in options(EggrollConfig):
            if option.kind is Kind.KEY:
                setters.setdefault(option.says, []).append(option.name)
        found = {key: names for key, names in setters.items() if re.search(rf"\b{re.escape(key)}\b", str(error))}
        named = [f"{key} is {' or '.join(names)} here" for key, names in found.items() if key != names[0]]
        if named:
            raise UsageError(f"{error} ({'; '.join(named)})") from error
        raise


def rows_of_table(args: EggrollConfig) -> list[tuple[str, str, str]]:
    """The options that are set to another value than their default: name, value, and what became of it."""
    return [
        (option.name, str(value), option.says if option.kind is Kind.KEY else f"{option.kind}: {option.says}")
        for option, value in changed(args)
    ]
