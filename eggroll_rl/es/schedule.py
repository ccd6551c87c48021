"""Numbers that change as a run goes on: the learning rate, and the scale of the noise."""

import math

from eggroll_rl.config import OptimizerConfig, PopulationConfig
from eggroll_rl.es.integers import moving_share


def learning_rate(config: OptimizerConfig, generation: int, generations: int, spent: float = 0.0) -> float:
    """The learning rate of a generation: linear warmup, then constant, or falling to 0 at the end of the run. With
    ``votes`` it is the share of the weights that moves, about.

    Args:
        generation: counted from 0.
        generations: of the whole run.
        spent: the share of the run's minutes that is spent; 0 where it has no limit. Progress is the larger of this and
            the share of generations.
    """
    if config.name == "votes":
        return moving_share(generation, config.alpha)
    if generation < config.warmup:
        return config.lr * (generation + 1) / config.warmup
    progress = _progress(generation - config.warmup, generations - config.warmup, spent)
    if config.schedule == "linear":
        return config.lr * (1 - progress)
    if config.schedule == "cosine":
        return config.lr * _cosine(progress)
    return config.lr


def noise_scale(config: PopulationConfig, generation: int, generations: int, spent: float = 0.0) -> float:
    """sigma of a generation: constant, or along half a cosine to ``final_sigma`` at the end of the run."""
    if config.final_sigma is None:
        return config.sigma
    share = _cosine(_progress(generation, generations, spent))
    return config.final_sigma + (config.sigma - config.final_sigma) * share


def _progress(generation: int, generations: int, spent: float) -> float:
    return min(1.0, max(generation / max(1, generations), spent))


def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))
