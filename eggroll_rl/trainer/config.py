"""The options of TRL's ``GRPOConfig`` by their names, and those that only evolution strategies have."""

import json
from dataclasses import dataclass
from typing import Any

from eggroll_rl.system.errors import UsageError
from eggroll_rl.trainer.grpo_options import GRPOOnly
from eggroll_rl.trainer.options import Kind, changed, own, sets
from eggroll_rl.trainer.process import Process

PER_STEP = (
    "data.prompts"  # with the others: per_device_train_batch_size * gradient_accumulation_steps / num_generations
)
JSON_OPTIONS = ("model_init_kwargs", "chat_template_kwargs", "generation_kwargs")  # which command lines give as text


@dataclass
class EggrollConfig(GRPOOnly, Process):
    """What an ``EggrollTrainer`` is told.

    Options have the names, and where nothing else is said the defaults, of TRL's ``GRPOConfig``. One that cannot mean
    anything in a run by evolution strategies is refused with the reason, all of them at once.

    Raises:
        UsageError: an option is set that has no meaning here, or to a value that it cannot have.
    """

    output_dir: str | None = sets(None, "output_dir")

    # the population, which GRPO has not
    population_size: int = sets(256, "population.size")
    sigma: float = sets(1e-3, "population.sigma")
    rank: int = sets(1, "population.rank")
    antithetic: bool = sets(True, "population.antithetic")
    noise: str = sets("normal", "population.noise")
    noise_reuse: int = sets(1, "population.noise_reuse")
    whitening: float | None = sets(None, "population.whitening")
    fitness_shaping: str = sets("prompt", "fitness.shaping")
    fitness_best: int | None = sets(None, "fitness.best")
    lowrank: list[str] | None = sets(None, "parameters.lowrank")
    dense: list[str] | None = sets(None, "parameters.dense")
    frozen: list[str] | None = sets(None, "parameters.frozen")
    prompts_per_generation: int | None = sets(None, PER_STEP)
    minutes: float | None = sets(None, "minutes")
    engine: str = sets("local", "engine.name")
    momentum: float = sets(0.0, "optimizer.momentum")
    stop: list[str] = sets([], "sampling.stop")
    reward_timeout: float = sets(30.0, "scoring.timeout")
    reward_on_error: str = sets("nan", "scoring.on_error")
    eval_reward: str | None = sets(None, "evaluation.reward")
    overrides: list[str] = own([], "takes any other key of the recipe, as in `engine.max_rows=64`")

    # how long, and how many prompts a step
    num_train_epochs: float = sets(3.0, "generations")
    max_steps: int = sets(-1, "generations")
    per_device_train_batch_size: int = sets(64, PER_STEP)
    gradient_accumulation_steps: int = sets(1, PER_STEP)
    num_generations: int = sets(8, PER_STEP)

    # the optimizer
    learning_rate: float = sets(1e-4, "optimizer.lr")
    lr_scheduler_type: str = sets("linear", "optimizer.schedule")
    warmup_steps: float = sets(0, "optimizer.warmup")
    optim: str = sets("adamw_torch_fused", "optimizer.name")
    weight_decay: float = sets(0.0, "optimizer.weight_decay")
    adam_beta1: float = sets(0.9, "optimizer.betas")
    adam_beta2: float = sets(0.999, "optimizer.betas")

    # the model and what runs it
    model_init_kwargs: dict[str, Any] | str | None = sets(None, "engine.dtype")
    bf16: bool | None = sets(None, "engine.dtype")
    use_cpu: bool = sets(False, "engine.device")
    use_vllm: bool = sets(False, "engine.name")
    vllm_gpu_memory_utilization: float = sets(0.7, "engine.vllm.gpu_memory_utilization")
    vllm_max_model_length: int | None = sets(None, "engine.vllm.max_model_len")
    vllm_tensor_parallel_size: int = sets(1, "engine.vllm.tensor_parallel_size")

    # answers
    max_completion_length: int | None = sets(512, "sampling.max_new_tokens")
    temperature: float = sets(0.0, "sampling.temperature")
    top_p: float = sets(1.0, "sampling.top_p")
    top_k: int = sets(0, "sampling.top_k")
    min_p: float | None = sets(None, "sampling.min_p")
    repetition_penalty: float = sets(1.0, "sampling.repetition_penalty")
    generation_kwargs: dict[str, Any] | str | None = sets(None, "sampling")
    system: str | None = sets(None, "data.system")
    chat_template_kwargs: dict[str, Any] | str | None = sets(None, "data.chat_template")
    reward_weights: list[float] | None = sets(None, "rewards.weight")

    # evaluation, snapshots, trackers
    eval_strategy: str = sets("no", "evaluation.every")
    eval_steps: float | None = sets(None, "evaluation.every")
    save_strategy: str = sets("steps", "snapshots.every")
    save_steps: float = sets(500, "snapshots.every")
    save_total_limit: int | None = sets(None, "snapshots.keep")
    report_to: None | str | list[str] = sets("none", "trackers")
    project: str = sets("eggroll-rl", "trackers.project")
    run_name: str | None = sets(None, "trackers.options")
    trackio_space_id: str | None = sets(None, "trackers.options")
    seed: int = sets(42, "seed")

    # of the trainer itself
    logging_strategy: str = own("steps", "says when log_history gets an entry and callbacks their on_log")
    logging_steps: float = own(10, "steps from one such entry to the next; below 1: a share of all steps")
    logging_first_step: bool = own(False, "an entry of the first step, too")
    metric_for_best_model: str | None = own(
        None, "the metric of evaluations that state.best_metric and callbacks go by"
    )
    greater_is_better: bool | None = own(None, "of that metric; None: unless its name ends in loss")
    push_to_hub: bool = own(False, "pushes the model when training ends")
    hub_model_id: str | None = own(None, "the name on the hub, with or without an owner; None: output_dir's")
    hub_private_repo: bool | None = own(None, "of the repository that is made")
    do_train: bool = own(False, "for your script to read, as in TRL")
    do_eval: bool = own(False, "for your script to read, as in TRL")
    do_predict: bool = own(False, "for your script to read, as in TRL")
    resume_from_checkpoint: str | None = own(None, "for your script to read, as in TRL")

    def __post_init__(self) -> None:
        self.scale_rewards = {True: "group", False: "none"}.get(self.scale_rewards, self.scale_rewards)  # type: ignore[call-overload]
        for name in JSON_OPTIONS:
            value = getattr(self, name)
            if isinstance(value, str):
                setattr(self, name, _json(name, value))
        if self.metric_for_best_model is not None and self.greater_is_better is None:
            self.greater_is_better = not self.metric_for_best_model.endswith("loss")
        without = [
            f"{option.name}={value!r}: {option.says}" for option, value in changed(self) if option.kind is Kind.REFUSED
        ]
        if without:
            raise UsageError("no meaning in a run by evolution strategies, take it out: " + "; ".join(without))


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UsageError(f"{name}={text!r} is not JSON: {error}") from error
