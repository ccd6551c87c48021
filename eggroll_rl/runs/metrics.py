"""The record of a generation: numbers for ``metrics.jsonl`` and a few answers for ``samples.jsonl``.

Legend: N members, P prompts.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from eggroll_rl.data.dataset import Batch
from eggroll_rl.es.fitness import spread
from eggroll_rl.es.rollout import Completion
from eggroll_rl.es.update import Update
from eggroll_rl.runs.clock import Lap
from eggroll_rl.runs.journal import Entry
from eggroll_rl.runs.objective import Judged
from eggroll_rl.scoring import Scores

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)  # of the members' rewards, in the record of a generation

Record = dict[str, Any]


def generation_record(generation: int, facts: Record, lr: float, lap: Lap) -> Record:
    """The record that every trainer keeps of a generation: ``facts`` (with ``tokens``), learning rate and seconds.

    ``seconds`` are those of training so far, ``seconds_generation`` those since the generation before was recorded.
    """
    return {
        "generation": generation,
        **facts,
        "lr": lr,
        "seconds": lap.total,
        "seconds_generation": lap.seconds,
        **{f"seconds_{part}": seconds for part, seconds in lap.parts.items()},
        "tokens_per_second": facts["tokens"] / lap.seconds,
    }


def entry_of(update: Update, judged: Judged, lap: Lap) -> Entry:
    """The journal's entry of a generation: its update, record and samples. The entry is written before the step, so its
    seconds include the step of the generation before."""
    population = update.population
    antithetic = population.config.antithetic
    facts = judged.metrics | {"signal": spread(judged.scores_NP, antithetic).signal, "sigma": population.sigma}
    return Entry(update, generation_record(population.generation, facts, update.lr, lap), judged.samples)


def facts_of_answers(completions: Sequence[Sequence[Completion]], scores: Scores) -> Record:
    """The numbers that EGGROLL and GRPO record of answers ``[member][prompt]``: rewards and tokens."""
    answers = [answer for row in completions for answer in row]
    return {
        "reward_mean": number(scores.rewards_NP.nanmean()),
        "rewards": {name: number(values.nanmean()) for name, values in scores.by_function.items()},
        "reward_failures": scores.failures,
        **scores.logged(),
        "finished": sum(answer.finished for answer in answers) / len(answers),
        "tokens": sum(len(answer.token_ids) for answer in answers),
    }


def judged_answers(
    generation: int, examples: Batch, completions: Sequence[Sequence[Completion]], scores: Scores
) -> Judged:
    """A population judged by its answers; its samples are what the first, last and best member answered to prompt 0."""
    rewards_NP = scores.rewards_NP
    rewards_N = rewards_NP.nanmean(1)
    known_N = rewards_N[~rewards_N.isnan()]
    best = int(rewards_N.nan_to_num(nan=-math.inf).argmax())
    quantiles = known_N.quantile(known_N.new_tensor(QUANTILES)) if len(known_N) else known_N.new_full((1,), math.nan)
    of_members = {
        "reward_std": number(known_N.std(correction=0)) if len(known_N) else None,
        "reward_quantiles": quantiles.tolist() if quantiles.isfinite().all() else None,
        "reward_best_member": number(rewards_N[best]),
    }
    samples = [
        sample(generation, {"member": member}, examples, completions[member][0], scores.rewards_NP[member, 0])
        | scores.logged_of(member, 0)
        for member in dict.fromkeys((0, len(completions) - 1, best))
    ]
    return Judged(rewards_NP, facts_of_answers(completions, scores) | of_members, samples)


def sample(generation: int, whose: Mapping[str, int], examples: Batch, answer: Completion, reward: Tensor) -> Record:
    """The record of one answer to the first prompt."""
    facts = {"prompt": examples.prompts[0], "completion": answer.text, "reward": number(reward)}
    return {"generation": generation, **whose, **facts}


def number(value: Tensor) -> float | None:
    """The tensor's number; None, JSON's null, where it is not finite."""
    return value.item() if value.isfinite() else None
