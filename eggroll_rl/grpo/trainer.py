"""TRL's trainer, set up by a recipe."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback, TrainerCallback

from eggroll_rl.config import Recipe
from eggroll_rl.grpo.policy import Policy
from eggroll_rl.grpo.rounds import Prompts, Rounds

if TYPE_CHECKING:
    from trl import GRPOConfig, GRPOTrainer

OPTIMIZERS: dict[str, Any] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "radam": torch.optim.RAdam,
}


class AfterRound(TrainerCallback):
    """Calls ``after_round`` with TRL's logs of each batch of rollouts, and stops the training where it returns True."""

    def __init__(self, after_round: Callable[[dict[str, float]], bool]):
        self._after_round = after_round

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" in logs and self._after_round(logs):
            control.should_training_stop = True


def build_trainer(
    recipe: Recipe, policy: Policy, rounds: Rounds, after_round: Callable[[dict[str, float]], bool]
) -> "GRPOTrainer":
    """TRL's trainer; ``after_round`` is called with its logs of each batch of rollouts, and returns whether to stop."""
    from datasets import IterableDataset
    from trl import GRPOTrainer

    grpo = recipe.grpo
    parameters = [parameter for parameter in policy.trained.parameters() if parameter.requires_grad]
    optimizer = OPTIMIZERS[grpo.optimizer](parameters, lr=grpo.lr, weight_decay=grpo.weight_decay)
    with _without_warnings():
        trainer = GRPOTrainer(
            policy.trained,
            rounds.reward,
            grpo_config(recipe, policy.engine.model.device.type),
            IterableDataset.from_generator(Prompts(rounds.data)),
            processing_class=policy.tokenizer,
            callbacks=[AfterRound(after_round)],
            optimizers=(optimizer, None),
            rollout_func=rounds.answer,
        )
    trainer.remove_callback(PrinterCallback)
    return trainer


def grpo_config(recipe: Recipe, device: str) -> "GRPOConfig":
    """TRL's configuration with the values of a recipe, for a kind of device (``cpu`` or ``cuda``)."""
    from trl import GRPOConfig

    grpo, sampling = recipe.grpo, recipe.sampling
    steps = grpo.minibatches * grpo.iterations
    return GRPOConfig(
        output_dir=str(recipe.output_dir),
        seed=recipe.seed % 2**32,
        use_cpu=device == "cpu",
        bf16=recipe.engine.dtype == "bfloat16",
        gradient_checkpointing=grpo.gradient_checkpointing,
        generation_batch_size=grpo.rollouts,
        per_device_train_batch_size=grpo.rows_of_a_pass,
        gradient_accumulation_steps=grpo.rollouts // grpo.minibatches // grpo.rows_of_a_pass,
        num_generations=grpo.group,
        num_iterations=grpo.iterations,
        max_completion_length=sampling.max_new_tokens,
        max_steps=recipe.generations * steps,
        lr_scheduler_type="constant",
        max_grad_norm=grpo.max_grad_norm,
        loss_type=grpo.loss,
        scale_rewards=grpo.scale_rewards,
        beta=grpo.beta,
        epsilon=grpo.epsilon,
        temperature=grpo.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p or None,
        repetition_penalty=sampling.repetition_penalty,
        disable_dropout=True,
        shuffle_dataset=False,
        dataloader_pin_memory=device != "cpu",
        logging_steps=steps,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def run_trainer(trainer: "GRPOTrainer") -> None:
    with _without_warnings():
        trainer.train()


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Hide two warnings that TRL causes itself: a deprecated name of transformers, and its experimental hook."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing` is deprecated", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*'rollout_func', which is an experimental", category=UserWarning)
        yield
