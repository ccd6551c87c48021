"""Held-out accuracy of an engine's unperturbed model, with intervals.

Legend: P prompts, S samples of each.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from eggroll_rl.config import Recipe, RewardConfig, SamplingConfig
from eggroll_rl.data.dataset import Batch
from eggroll_rl.es.rollout import Completion, Prompt
from eggroll_rl.runs.clock import Marks
from eggroll_rl.runs.vote import elected
from eggroll_rl.scoring import Scorer, Scores, TrainerState

CORRECT = 1.0 - 1e-9  # a reward from which an answer counts as right
SHOWN = 6  # held-out problems, the first, whose answers are kept with a run


class Answering(Protocol):
    """A model that answers prompts: an engine, or GRPO's policy."""

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingConfig) -> list[list[Completion]]:
        """The unperturbed model's answers, ``[0][prompt]``."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """Share of right answers with its Wilson 95 % interval.

    Attributes:
        accuracy: right answers over ``n``; 0 where that is 0, with the interval from 0 to 1.
        n: problems that the reward judges. One for which it gives None, because it does not apply, counts neither as
            right nor as wrong; one for which it fails (timeout, crash, exception, NaN) counts as wrong, so that no
            answer gains by breaking its judge.
        correct: [P]; None where the reward gave None.
        prompts, completions: [P].
        retained: the evaluation on the task of the recipe's ``retention``; None where it has none.
        reward: mean reward of the judged problems; None where none was judged.
    """

    title: ClassVar[str] = "held-out accuracy"
    accuracy: float
    low: float
    high: float
    n: int
    correct: tuple[bool | None, ...]
    prompts: tuple[Prompt, ...]
    completions: tuple[str, ...]
    retained: "Evaluation | None" = None
    reward: float | None = None

    def summary(self) -> dict[str, Any]:
        return {"accuracy": self.accuracy, "low": self.low, "high": self.high, "n": self.n}

    @property
    def marks(self) -> str:
        """A character for each problem: 1 right, 0 wrong, - not judged."""
        return "".join("-" if right is None else str(int(right)) for right in self.correct)

    def record(self) -> dict[str, Any]:
        """What metrics and journal keep: the summary, the mean reward, the marks, and the first ``SHOWN`` answers."""
        answers = zip(self.prompts[:SHOWN], self.completions, self.correct, strict=False)
        return self.summary() | {
            "reward": self.reward,
            "marks": self.marks,
            **({"retention": self.retained.accuracy} if self.retained and self.retained.n else {}),
            "answers": [{"prompt": prompt, "completion": text, "correct": right} for prompt, text, right in answers],
        }

    def __str__(self) -> str:
        other = f"; of what is not trained {self.retained}" if self.retained else ""
        return f"{self.accuracy:.1%} [{self.low:.1%}, {self.high:.1%}] of {self.n}{other}"


def gained_and_lost(before: str, after: str) -> dict[str, int]:
    """Of two ``Evaluation.marks``: how many problems became right (``gained``) and wrong (``lost``)."""
    pairs = list(zip(before, after, strict=True))
    return {"gained": pairs.count(("0", "1")), "lost": pairs.count(("1", "0"))}


class Schedule:
    """When a run evaluates between its start and its end: every so many generations, and at marks of its minutes.

    Args:
        seconds: of training so far.
    """

    def __init__(self, recipe: Recipe, seconds: float = 0.0):
        self._every = recipe.evaluation.every or recipe.generations
        self._marks = Marks(recipe.minutes, recipe.evaluation.marks, seconds)

    def is_due(self, generation: int, seconds: float) -> bool:
        """Whether an evaluation is due after so many updates and seconds; called once for each generation."""
        return self._marks.passed(seconds) or generation % self._every == 0


def evaluate(engine: Answering, batch: Batch, scorer: Scorer, sampling: SamplingConfig) -> Evaluation:
    """Answer every prompt once; an answer is right where its reward is at least 1 (see `Evaluation`)."""
    completions = engine.generate(batch.prompts, sampling)
    scores = score(scorer, completions, batch.prompts, batch.columns)
    correct, mean = _correct(scores), scores.rewards_NP.nanmean().item()
    reward = mean if math.isfinite(mean) else None
    right, n = correct.count(True), len(correct) - correct.count(None)
    low, high = wilson_interval(right, n)
    texts = tuple(completion.text for completion in completions[0])
    return Evaluation(right / n if n else 0.0, low, high, n, correct, tuple(batch.prompts), texts, reward=reward)


def evaluate_samples(
    engine: Answering, batch: Batch, scorer: Scorer, sampling: SamplingConfig, samples: int
) -> dict[str, float]:
    """``{"pass@1": ..., "pass@2": ..., ..., "pass@S": ..., "maj@S": ...}`` from S samples of each prompt at the given
    temperature: the chance that one of k is right, and whether what most of the S say is (`elected`).

    The mean over the prompts of which the reward judges a sample (0 where there is none), each by its judged samples:
    those for which the reward gave None are left out, those for which it failed are wrong. Where fewer than k are left,
    all of them are drawn.
    """
    prompts = [prompt for prompt in batch.prompts for _ in range(samples)]
    columns = {name: [value for value in values for _ in range(samples)] for name, values in batch.columns.items()}
    completions = engine.generate(prompts, sampling)
    correct = _correct(score(scorer, completions, prompts, columns))
    answers = [(one.text, right) for one, right in zip(completions[0], correct, strict=True)]
    judged_PS = [
        [(text, right) for text, right in answers[first : first + samples] if right is not None]
        for first in range(0, len(answers), samples)
    ]
    judged_PS = [judged for judged in judged_PS if judged]
    counts = [(len(judged), sum(right for _, right in judged)) for judged in judged_PS]
    ks = sorted({*(2**power for power in range(samples.bit_length()) if 2**power <= samples), samples})
    passed = {f"pass@{k}": sum(pass_at_k(n, right, min(k, n)) for n, right in counts) for k in ks}
    voted = {f"maj@{samples}": sum(judged[elected([text for text, _ in judged])][1] for judged in judged_PS)}
    return {name: total / max(1, len(judged_PS)) for name, total in (passed | voted).items()}


def _correct(scores: Scores) -> tuple[bool | None, ...]:
    """Whether each answer of the only row is right; None where no function judged it."""
    right = (scores.rewards_NP[0] >= CORRECT).tolist()
    unjudged = [False] * len(right) if scores.unjudged_NP is None else scores.unjudged_NP[0].tolist()
    return tuple(None if skipped else value for value, skipped in zip(right, unjudged, strict=True))


def score(
    scorer: Scorer,
    completions: Sequence[Sequence[Completion]],
    prompts: Sequence[Prompt],
    columns: Mapping[str, Sequence[Any]],
    state: TrainerState | None = None,
) -> Scores:
    """Score an engine's answers ``[member][prompt]``; ``state`` is what rewards may read of the run's progress."""
    token_ids = [[answer.token_ids for answer in row] for row in completions]
    return scorer(as_trl(completions, prompts), prompts, columns, token_ids, state)


def as_trl(completions: Sequence[Sequence[Completion]], prompts: Sequence[Prompt]) -> list[list[Any]]:
    """Completions as TRL's rewards take them: texts, or for a chat prompt the assistant's message in a list."""
    return [
        [
            answer.text if isinstance(prompt, str) else [{"role": "assistant", "content": answer.text}]
            for answer, prompt in zip(row, prompts, strict=True)
        ]
        for row in completions
    ]


def data_hash(batch: Batch) -> str:
    """SHA-256 of prompts and columns, in hexadecimal."""
    return hashlib.sha256(json.dumps(_plain([batch.prompts, batch.columns])).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """Any value of a column as JSON, the same for equal values: items of sets are sorted."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return [[_plain(key), _plain(inner)] for key, inner in value.items()]
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return sorted(map(repr, value)) if isinstance(value, set | frozenset) else repr(value)


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval for a proportion (Wilson 1927); (0, 1) where n is 0."""
    from scipy.stats import binomtest

    if n == 0:
        return 0.0, 1.0
    low, high = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    return min(successes / n, float(low)), max(successes / n, float(high))  # rounding never leaves the share outside


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Unbiased chance that at least one of k answers is right, given ``right`` of ``samples`` (arXiv 2107.03374)."""
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def accuracy_reward(recipe: Recipe) -> RewardConfig:
    """The reward that judges held-out answers: ``evaluation.reward``, else Countdown's for Countdown problems, else the
    first of the recipe's rewards."""
    if recipe.evaluation.reward:
        return RewardConfig(fn=recipe.evaluation.reward)
    if recipe.data.name == "countdown":
        return RewardConfig(fn="eggroll_rl.rewards.countdown:countdown")
    return RewardConfig(fn=recipe.rewards[0].fn)
