"""What only the GRPO baseline has."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from eggroll_rl.config.values import Count, Decay, Rank, Rate, Section, Temperature


class GRPOSection(Section):
    """What only the GRPO baseline has (``eggroll-rl grpo``, TRL's trainer); everything else is the recipe's.

    A batch of rollouts is ``group`` sampled answers to each of ``prompts`` prompts. It makes ``minibatches`` optimizer
    steps, ``iterations`` times over; ``rows`` bounds the answers of one backward pass (None: a whole minibatch; fewer
    accumulate the same gradient). ``loss``, ``scale_rewards``, ``beta`` (weight of the KL divergence to the base model)
    and ``epsilon`` (clip) are TRL's. ``lora_rank`` trains adapters of that rank on all linear layers, None every
    parameter.
    """

    prompts: int = Field(8, ge=1, le=2**20)
    group: int = Field(8, ge=2, le=2**20)
    minibatches: Count = 4
    iterations: Count = 1
    rows: Count | None = None
    optimizer: Literal["sgd", "adam", "adamw", "radam"] = "radam"
    lr: Rate = 3e-6
    weight_decay: Decay = 0.0
    max_grad_norm: float = Field(1.0, gt=0, le=1e9)
    loss: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "dr_grpo"
    scale_rewards: Literal["group", "batch", "none"] = "none"
    beta: float = Field(0.0, ge=0, le=1e3)
    epsilon: float = Field(0.2, gt=0, le=1e3)
    temperature: Annotated[Temperature, Field(gt=0)] = 1.0
    lora_rank: Rank | None = None
    gradient_checkpointing: bool = False

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
