"""Rewards become one weight for each member.

Legend: N members, P prompts, S samples of an answer, K pairs.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from eggroll_rl.config import FitnessConfig
from eggroll_rl.system.errors import UsageError


def check_fitness(config: FitnessConfig, members: int, antithetic: bool) -> None:
    """Raise UsageError where the shaping does not fit the population."""
    directions = members // 2 if antithetic else members
    if config.shaping == "sign" and not antithetic:
        raise UsageError("fitness.shaping sign compares the two members of a pair: set population.antithetic: true")
    if config.best is not None and config.best > directions:
        raise UsageError(f"fitness.best {config.best} is more than the population's {directions} directions: lower it")


def fitness(rewards_NP: Tensor, config: FitnessConfig, antithetic: bool) -> Tensor:
    """Fitness weights [N], float64, of the rewards [N, P] of N members on P prompts (see ``by_prompt``).

    ``prompt``: (reward - mean of that prompt over the population), summed over the prompts and standardised over the
    members (EGGROLL, arXiv 2511.16652; a division by the global deviation would cancel). ``zscore``: the member's mean
    reward, standardised; it differs where rewards are missing. ``rank``: centered ranks in [-0.5, 0.5], ties share
    theirs. ``sign``: +1 to the better member of a pair, -1 to the other, 0 to both in a tie. ``best`` = b: only the b
    pairs with the best member (ARS v1-t, arXiv 1803.07055) take part.

    A reward that is not finite counts as missing: it enters no mean, and a member without any reward weighs 0. Equal
    members all weigh 0. Scores within 2^-40 of the largest reward are equal, so rounding errors break no ties.

    Raises:
        UsageError: ``sign`` without antithetic pairs, or ``best`` above the number of pairs.
    """
    check_fitness(config, len(rewards_NP), antithetic)
    score_N = _scores(rewards_NP.double(), within_prompts=config.shaping != "zscore")
    if config.best is not None:
        score_N = _keep_best(score_N, config.best, 2 if antithetic else 1)
    if config.shaping == "sign":
        return _signs(score_N)
    weights_N = torch.zeros_like(score_N)
    valid_N = ~score_N.isnan()
    weights_N[valid_N] = (_centered_ranks if config.shaping == "rank" else _standardised)(score_N[valid_N])
    return weights_N


def by_prompt(rewards: Tensor, config: FitnessConfig) -> Tensor:
    """From rewards [N, P * S], the S samples of a prompt side by side, to [N, P]: the mean or the largest of a prompt's
    samples, as the recipe says. Missing rewards are left out."""
    if config.samples == 1:
        return rewards
    rewards_NPS = rewards.unflatten(1, (-1, config.samples))
    rewards_NPS = rewards_NPS.where(rewards_NPS.isfinite(), torch.nan)
    if config.objective == "mean":
        return rewards_NPS.nanmean(2)
    largest_NP = rewards_NPS.nan_to_num(nan=-torch.inf).amax(2)
    return largest_NP.where(largest_NP.isfinite(), torch.nan)


class Spread(NamedTuple):
    """How much the scores of directions differ.

    A direction's score is the difference of rewards within a pair (without pairs, a member's reward), summed over the
    prompts.

    Attributes:
        prompts: P.
        of_scores: variance of the scores over the directions.
        of_prompts: variance over the directions on each prompt alone, summed over the prompts.
    """

    prompts: int
    of_scores: float
    of_prompts: float

    @property
    def signal(self) -> float | None:
        """Reliability of the scores (Cronbach's alpha): the share of their variance that other prompts would confirm.

        At 0 or below, the choice of prompts decides who is better, and an update is noise. None with fewer than two
        prompts, or where all scores are equal.
        """
        if self.prompts < 2 or self.of_scores <= 0:
            return None
        return self.prompts / (self.prompts - 1) * (1 - self.of_prompts / self.of_scores)


def spread(rewards_NP: Tensor, antithetic: bool) -> Spread:
    """The spread of rewards [N, P]; a missing one counts as the mean of its prompt."""
    rewards_NP = rewards_NP.double().where(rewards_NP.isfinite(), torch.nan)
    scores_KP = (rewards_NP - rewards_NP.nanmean(0)).nan_to_num(nan=0.0)
    if antithetic:
        scores_KP = scores_KP[0::2] - scores_KP[1::2]
    of_scores, of_prompts = scores_KP.sum(1).var(correction=0), scores_KP.var(0, correction=0).sum()
    return Spread(scores_KP.shape[1], of_scores.item(), of_prompts.item())


def _scores(rewards_NP: Tensor, within_prompts: bool) -> Tensor:
    """One number for each member, 0 on average, in units of the largest reward; NaN without any reward."""
    valid_NP = rewards_NP.isfinite()
    rewards_NP = rewards_NP.where(valid_NP, 0.0)
    rewards_NP = rewards_NP / rewards_NP.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    valid_N = valid_NP.any(1)
    if within_prompts:
        mean_P = rewards_NP.sum(0) / valid_NP.sum(0).clamp(min=1)
        score_N = (rewards_NP - mean_P).where(valid_NP, 0.0).sum(1)
    else:
        score_N = rewards_NP.sum(1) / valid_NP.sum(1).clamp(min=1)
        score_N = score_N - score_N[valid_N].mean()
    return score_N.mul(2.0**40).round().div(2.0**40).where(valid_N, torch.nan)


def _keep_best(score_N: Tensor, best: int, members_per_direction: int) -> Tensor:
    """The scores of the directions whose better member scores highest; NaN for the others."""
    score_KS = score_N.view(-1, members_per_direction)
    order_K = score_KS.nan_to_num(nan=-torch.inf).amax(1).argsort(descending=True, stable=True)
    kept_KS = torch.full_like(score_KS, torch.nan)
    kept_KS[order_K[:best]] = score_KS[order_K[:best]]
    return kept_KS.flatten()


def _standardised(score: Tensor) -> Tensor:
    if (score == score[:1]).all():  # the deviation would be 0, or rounding
        return torch.zeros_like(score)
    return (score - score.mean()) / score.std(correction=0)


def _centered_ranks(score: Tensor) -> Tensor:
    ordered = score.sort().values
    below, up_to = torch.searchsorted(ordered, score), torch.searchsorted(ordered, score, right=True)
    last = len(score) - 1
    return (below + up_to - 1).double() / (2 * last) - 0.5 if last else torch.zeros_like(score)


def _signs(score_N: Tensor) -> Tensor:
    sign_K = (score_N[0::2] - score_N[1::2]).sign().nan_to_num(nan=0.0)
    return torch.stack([sign_K, -sign_K], 1).flatten()
