"""Evolution: the population, what of a model evolves, and how rewards become a step."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from eggroll_rl.config.values import AtLeast, Count, CountOrZero, Decay, Rank, Rate, Section

Sigma = Annotated[float, Field(gt=0, le=1e3), AtLeast(1e-9)]
Damping = Annotated[float, Field(gt=0, le=1e3), AtLeast(1e-9)]


class PopulationConfig(Section):
    """The members: perturbations ``E = A B^T / sqrt(r)`` of the weights, times sigma."""

    size: int = Field(256, ge=2, lt=2**31)
    """N, the number of members; even where they are antithetic."""
    rank: Rank = 1
    """r, of a matrix's noise."""
    sigma: Sigma = 1e-3
    """The scale of the noise: how far a member is from the mean."""
    final_sigma: Sigma | None = None
    """sigma at the end of the run, reached along half a cosine; null: sigma is constant."""
    antithetic: bool = True
    """Members come in pairs of opposite sign."""
    noise: Literal["normal", "rademacher"] = "normal"
    """The distribution of the elements of A and B; ``rademacher`` is -1 or +1."""
    whitening: Damping | None = None
    """Damping of whitened noise: a matrix's noise is multiplied by ``(C / m + whitening)^(-1/2)``, where C is the
    second moment of the matrix's inputs, measured before the first generation, and m the mean of its diagonal. A
    direction in which inputs vary little is then tried as hard as any other. The larger, the closer to plain noise;
    null: plain noise."""
    noise_reuse: Count = 1
    """Number of generations that share one draw of noise."""

    @model_validator(mode="after")
    def _pairs_are_whole(self) -> "PopulationConfig":
        if self.antithetic and self.size % 2:
            raise ValueError(
                f"size {self.size} is odd, and antithetic members come in pairs: "
                f"take {self.size + 1}, or antithetic: false"
            )
        return self


class ParametersConfig(Section):
    """Which parameters evolve, as globs over canonical names; the first list that matches wins, in this order."""

    frozen: tuple[str, ...] = ("*embed*", "*lm_head*", "*wte*", "*wpe*", "*norm*", "*.ln*", "*.r_k")
    """Parameters that stay as they are."""
    dense: tuple[str, ...] = ()
    """Parameters of any shape that get full noise, one number for each element."""
    lowrank: tuple[str, ...] = ("*",)
    """Matrices that match get low-rank noise; what is no matrix stays."""


class FitnessConfig(Section):
    """How rewards become fitness weights."""

    shaping: Literal["prompt", "zscore", "rank", "sign"] = "prompt"
    """``prompt`` compares with the population's mean on the same prompt, ``zscore`` standardises the members' means,
    ``rank`` takes centered ranks, ``sign`` compares the two of a pair."""
    best: Count | None = None
    """How many directions take part in an update, those with the best members; null: all."""
    samples: int = Field(1, ge=1, le=2**20)
    """Answers to each prompt, which differ by the recipe's temperature."""
    objective: Literal["mean", "max"] = "mean"
    """What a member's samples of a prompt are worth: their mean, or the best of them. Of right and wrong answers,
    ``max`` is the chance that one of so many is right (pass@k)."""

    @model_validator(mode="after")
    def _best_of_several(self) -> "FitnessConfig":
        if self.objective == "max" and self.samples == 1:
            raise ValueError("objective max is the best of several answers: set fitness.samples above 1")
        return self


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Section):
    """A stock torch optimizer over fp32 master weights, its steps in units of int8, or the votes of a population on
    integers."""

    name: Literal["votes", "sgd", "adam", "adamw"] = "adam"
    """Which optimizer; ``votes`` moves a weight of a model of integers by one where enough pairs agree."""
    alpha: Annotated[float, Field(gt=0, le=32), AtLeast(1e-9)] = 4.0
    """Of ``votes``, which have no other setting: about ``1 / ((2**alpha - 1) t / 1000 + 1)`` of the weights move in
    generation t; up to 1, it is that share itself."""
    lr: Rate = 1e-3
    """The learning rate."""
    momentum: float = Field(0.0, ge=0, lt=1)
    """Momentum of ``sgd``."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Coefficients of ``adam`` and ``adamw``."""
    weight_decay: Decay = 0.0
    """Weight decay of the optimizer."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the rate goes on after the warmup; it reaches 0 at ``generations`` or ``minutes``, whichever come first."""
    warmup: CountOrZero = 0
    """Generations in which the rate rises to ``lr``."""
    average: float = Field(0.0, ge=0, lt=1)
    """Decay of a running average of the weights in each generation (0.98: it spans some 50 of them). The average is the
    model that is evaluated and saved; 0: there is none, and the last weights are."""
    anchor: float = Field(0.0, ge=0, lt=1)
    """After each step, weights move back to the base weights by this share of the way, against forgetting (arXiv
    2605.30148)."""
    error_feedback: bool = True
    """With int8 weights, the rest of a step below a whole unit is added to the next step; false: it is lost."""

    @model_validator(mode="after")
    def _settings_of_one_rule(self) -> "OptimizerConfig":
        votes = self.name == "votes"
        for key, field in type(self).model_fields.items():
            if key != "name" and (key == "alpha") != votes and getattr(self, key) != field.default:
                raise ValueError(f"{self.name} has no {key}: drop optimizer.{key}, or choose another optimizer.name")
        return self
