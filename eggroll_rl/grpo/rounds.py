"""Rounds of GRPO: TRL's callbacks for prompts, answers and rewards, and the metrics of each batch.

Legend: P prompts of a batch, G answers to each.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from eggroll_rl.config import Recipe
from eggroll_rl.data.dataset import Dataset
from eggroll_rl.data.encoding import encode_all
from eggroll_rl.es.rollout import Completion, Prompt
from eggroll_rl.grpo.policy import Policy
from eggroll_rl.runs.clock import Stopwatch
from eggroll_rl.runs.evaluation import score
from eggroll_rl.runs.metrics import Record, facts_of_answers, generation_record, sample
from eggroll_rl.scoring import Scorer, TrainerState
from eggroll_rl.system.errors import NotFinite

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
        """None: ``datasets`` pickles this object only to hash it."""


class Rounds:
    """TRL calls ``answer``, then ``reward``, for each batch of rollouts; ``finish`` ends the batch with its metrics.

    Attributes:
        done: batches whose optimizer steps are all taken.
    """

    def __init__(self, recipe: Recipe, data: Dataset, policy: Policy, scorer: Scorer, clock: Stopwatch):
        self.recipe, self.data, self.policy, self.scorer, self.clock = recipe, data, policy, scorer, clock
        self.done = 0
        self.answers: list[Completion] = []

    def answer(self, prompts: Sequence[Prompt], trainer: "GRPOTrainer") -> dict[str, Any]:
        """TRL's ``rollout_func``: one sampled answer to each of P*G prompts, its end token included."""
        seed = ((self.recipe.seed << 32) + self.done + 1) % 2**64
        changes = {"temperature": self.recipe.grpo.temperature, "seed": seed}
        with self.policy.answering() as engine:
            self.answers = engine.generate(prompts, self.recipe.sampling.model_copy(update=changes))[0]
            options = self.recipe.data.chat_template
            prompt_ids = encode_all(self.policy.tokenizer, prompts, options)
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
        state = TrainerState(self.done, self.recipe.generations)
        self.scores = score(self.scorer, [self.answers], repeated, columns, state)
        self.clock.note("score")
        return [None if math.isnan(reward) else reward for reward in self.scores.rewards_NP[0].tolist()]

    def finish(self, logs: dict[str, float]) -> tuple[Record, list[Record]]:
        """End a batch whose steps are all taken; returns its metrics, with some of TRL's ``logs``, and sample answers.

        Raises:
            NotFinite: the gradient was not finite, so the weights are lost.
        """
        generation, group, rewards = self.done, self.recipe.grpo.group, self.scores.rewards_NP[0]
        if not math.isfinite(logs["grad_norm"]):
            raise NotFinite(f"generation {generation}: the gradient is {logs['grad_norm']}: lower grpo.lr")
        answered = facts_of_answers([self.answers], self.scores)
        metrics = generation_record(generation, answered, logs["learning_rate"], self.clock.lap("update"))
        facts = {name: logs[name] for name in ("loss", "grad_norm", "entropy", "kl") if name in logs}
        best = int(rewards[:group].nan_to_num(nan=-math.inf).argmax())
        batch = self.data.batch(generation)
        samples = [
            sample(generation, {"answer": index}, batch, self.answers[index], rewards[index])
            | self.scores.logged_of(0, index)
            for index in dict.fromkeys((0, group - 1, best))
        ]
        self.done += 1
        return metrics | facts, samples
