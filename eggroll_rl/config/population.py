"""Evolution: the population, what of a model evolves, and how rewards become a step."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from eggroll_rl.config.values import Count, Decay, Rank, Rate, Section, Turn, at_least


class PopulationConfig(Section):
    """Size N, rank r and scale sigma of the perturbations ``E = A B^T / sqrt(r)``; noise is redrawn every
    ``noise_reuse`` generations."""

    size: int = Field(256, ge=2)
    rank: Rank = 1
    sigma: Annotated[float, Field(gt=0, le=1e3), at_least(1e-9)] = 1e-3
    antithetic: bool = True
    noise: Literal["normal", "rademacher"] = "normal"
    noise_reuse: Count = 1

    @field_validator("size")
    @classmethod
    def _fits_pair_index(cls, size: int) -> int:
        if size >= 2**31:
            raise ValueError("at most 2**31 - 1 members")
        return size

    @model_validator(mode="after")
    def _pairs_are_whole(self) -> "PopulationConfig":
        if self.antithetic and self.size % 2:
            raise ValueError(
                f"size {self.size} is odd, and antithetic members come in pairs: "
                f"take {self.size + 1}, or antithetic: false"
            )
        return self


class ParametersConfig(Section):
    """Which parameters evolve, as globs over canonical names; the first list that matches wins: frozen, dense, lowrank.

    Matrices that match ``lowrank`` get low-rank noise, anything that matches ``dense`` full Gaussian noise, the rest
    stays.
    """

    frozen: tuple[str, ...] = ("*embed*", "*lm_head*", "*wte*", "*wpe*", "*norm*", "*.ln*", "*.r_k")
    dense: tuple[str, ...] = ()
    lowrank: tuple[str, ...] = ("*",)


class FitnessConfig(Section):
    """How rewards become fitness weights (see ``es.fitness``); ``best`` keeps so many directions, None: all."""

    shaping: Literal["prompt", "zscore", "rank", "sign"] = "prompt"
    best: Count | None = None


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Section):
    """A stock torch optimizer over fp32 master weights; the schedule runs over ``generations``."""

    name: Literal["sgd", "adam", "adamw"] = "adam"
    lr: Rate = 1e-3
    momentum: float = Field(0.0, ge=0, lt=1)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: Decay = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: Turn = 0
