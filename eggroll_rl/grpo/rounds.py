"""What TRL asks for, batch after batch, and what a run's metrics keep of it.

Legend: P prompts of a batch, G answers to each.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from eggroll_rl.config import Recipe
from eggroll_rl.data.dataset import Dataset
from eggroll_rl.data.encoding import encode
from eggroll_rl.es.rollout import Completion, Prompt
from eggroll_rl.grpo.policy import Policy
from eggroll_rl.runs.evaluation import as_trl
from eggroll_rl.runs.progress import Stopwatch
from eggroll_rl.scoring import Scorer

if TYPE_CHECKING:
    from trl import GRPOTrainer


class Prompts:
    """The prompts that an EGGROLL run sees, in its order, without end."""

    def __init__(self, data: Dataset):
        self.data = data

    def __call__(self) -> Iterator[dict[str, Prompt]]:
        for index in itertools.count():
            yield from ({"prompt": prompt} for prompt in self.data.batch(index).prompts)

    def __getstate__(self) -> None:
        """Nothing of the data: a hash is all that ``datasets`` makes of it."""


class Rounds:
    """What TRL asks for in turn, a batch after the other: prompts, answers, rewards; and what the metrics keep.

    Attributes:
        done: batches whose optimizer steps are all taken.
        clock: of the training.
    """

    def __init__(self, recipe: Recipe, data: Dataset, policy: Policy, scorer: Scorer):
        self.recipe, self.data, self.policy, self.scorer = recipe, data, policy, scorer
        self.done, self.clock = 0, Stopwatch(None)
        self.answers: list[Completion] = []

    def answer(self, prompts: Sequence[Prompt], trainer: "GRPOTrainer") -> dict[str, Any]:
        """TRL's ``rollout_func``: one sampled answer to each of P*G prompts, its end token included."""
        seed = ((self.recipe.seed << 32) + self.done + 1) % 2**64
        changes = {"temperature": self.recipe.grpo.temperature, "top_p": 1.0, "seed": seed}
        with self.policy.answering() as engine:
            self.answers = engine.generate(prompts, self.recipe.sampling.model_copy(update=changes))[0]
            options = self.recipe.data.chat_template
            prompt_ids = [encode(self.policy.tokenizer, prompt, options) for prompt in prompts]
        self.clock.note("generate")
        completion_ids = [list(answer.token_ids) for answer in self.answers]
        return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": None}

    def reward(self, prompts: Sequence[Prompt], **_: Any) -> list[float | None]:
        """TRL's ``reward_func``: the weighted sum of the recipe's rewards for the last answers, None where there is
        none."""
        batch, group = self.data.batch(self.done), self.recipe.grpo.group
        repeated, *values = (
            [value for value in column for _ in range(group)] for column in (batch.prompts, *batch.columns.values())
        )
        assert list(prompts) == repeated, "TRL has the prompts in another order"
        columns = dict(zip(batch.columns, values, strict=True))
        self.scores = self.scorer(as_trl([self.answers], repeated), repeated, columns)
        self.clock.note("score")
        return [None if math.isnan(reward) else reward for reward in self.scores.rewards_NP[0].tolist()]

    def finish(self, logs: dict[str, float]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The metrics of a batch whose steps are all taken, given what TRL logged of them, and a few of its answers."""
        lap, grpo = self.clock.lap("update"), self.recipe.grpo
        rewards = self.scores.rewards_NP[0]
        tokens = sum(len(answer.token_ids) for answer in self.answers)
        metrics: dict[str, Any] = {
            "generation": self.done,
            "reward_mean": _number(rewards.nanmean().item()),
            "rewards": {name: _number(values.nanmean().item()) for name, values in self.scores.by_function.items()},
            "reward_failures": self.scores.failures,
            "finished": sum(answer.finished for answer in self.answers) / len(self.answers),
            "tokens": tokens,
            "lr": logs["learning_rate"],
            **{name: _number(logs[name]) for name in ("loss", "grad_norm", "entropy", "kl") if name in logs},
            "seconds": lap.total,
            "seconds_generation": lap.seconds,
            **{f"seconds_{part}": seconds for part, seconds in lap.parts.items()},
            "tokens_per_second": tokens / lap.seconds,
        }
        best = int(rewards[: grpo.group].nan_to_num(nan=-math.inf).argmax())
        prompt = self.data.batch(self.done).prompts[0]
        samples: list[dict[str, Any]] = []
        for index in dict.fromkeys((0, grpo.group - 1, best)):
            sample = {"generation": self.done, "answer": index, "prompt": prompt}
            answer, reward = self.answers[index], _number(rewards[index].item())
            samples.append({**sample, "completion": answer.text, "reward": reward})
        self.done += 1
        return metrics, samples


def _number(value: float) -> float | None:
    """A number for JSON, which has no NaN."""
    return value if math.isfinite(value) else None
