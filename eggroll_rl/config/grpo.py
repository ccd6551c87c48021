"""Settings of the GRPO baseline alone."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from eggroll_rl.config.values import AtLeast, Count, Decay, Rank, Rate, Section


class GRPOSection(Section):
    """Settings of the GRPO baseline alone (``eggroll-rl grpo``, TRL's trainer); it takes all others from the recipe."""

    prompts: int = Field(8, ge=1, le=2**20)
    """Prompts of a batch of rollouts."""
    group: int = Field(8, ge=2, le=2**20)
    """Sampled answers to each prompt."""
    minibatches: Count = 4
    """Optimizer steps that a batch makes."""
    iterations: Count = 1
    """Passes over a batch."""
    rows: Count | None = None
    """Answers of one backward pass; null: a whole minibatch. Fewer accumulate the same gradient."""
    optimizer: Literal["sgd", "adam", "adamw", "radam"] = "radam"
    """A stock torch optimizer."""
    lr: Rate = 3e-6
    """The learning rate."""
    weight_decay: Decay = 0.0
    """Weight decay of the optimizer."""
    max_grad_norm: float = Field(1.0, gt=0, le=1e9)
    """The norm to which gradients are clipped."""
    loss: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "dr_grpo"
    """TRL's ``loss_type``."""
    scale_rewards: Literal["group", "batch", "none"] = "none"
    """TRL's ``scale_rewards``: rewards are divided by the deviation of a group, of the batch, or not at all."""
    beta: float = Field(0.0, ge=0, le=1e3)
    """Weight of the KL divergence to the base model."""
    epsilon: float = Field(0.2, gt=0, le=1e3)
    """TRL's ``epsilon``: the distance from 1 at which ratios of probabilities are clipped."""
    temperature: Annotated[float, Field(gt=0, le=100), AtLeast(1e-3)] = 1.0
    """Temperature of the rollouts; everything else about sampling is as in the recipe's ``sampling``."""
    parameters: Literal["all", "evolved"] = "all"
    """What is trained: ``all`` parameters, or those alone that EGGROLL evolves by the recipe's ``parameters``."""
    lora_rank: Rank | None = None
    """Adapters of this rank are trained on all linear layers, in place of the weights; null: none are."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass, for less memory."""

    @property
    def rollouts(self) -> int:
        """Answers of one batch."""
        return self.prompts * self.group

    @property
    def rows_of_a_pass(self) -> int:
        return self.rows or self.rollouts // self.minibatches

    @model_validator(mode="after")
    def _batch_divides(self) -> "GRPOSection":
        batch = f"a batch of {self.rollouts} answers (prompts {self.prompts} x group {self.group})"
        if self.rollouts % self.minibatches:
            raise ValueError(f"{batch} does not divide into {self.minibatches} minibatches: change one of the three")
        if self.rollouts // self.minibatches % self.rows_of_a_pass:
            raise ValueError(
                f"a minibatch of {self.rollouts // self.minibatches} answers does not divide into passes of "
                f"{self.rows} rows: change grpo.rows"
            )
        return self

    @model_validator(mode="after")
    def _adapters_stand_alone(self) -> "GRPOSection":
        if self.lora_rank and self.parameters == "evolved":
            raise ValueError("lora_rank trains adapters, and parameters: evolved the weights that evolve: drop one")
        return self
