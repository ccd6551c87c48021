"""The folder of one run.

    recipe.yaml  journal.jsonl  snapshots/  metrics.jsonl  samples.jsonl  learning_curve.png  model/

The journal is the run; metrics and samples are views of it, for people and plots.
"""

import json
import math
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

from torch import Tensor

from eggroll_rl.config import Recipe, dump_recipe
from eggroll_rl.data import Batch
from eggroll_rl.durable import SCRATCH, cannot_write, replace_file, replace_folder, sync
from eggroll_rl.engines.base import Completion, Engine
from eggroll_rl.errors import UsageError
from eggroll_rl.journal import Entry, Header, Journal
from eggroll_rl.progress import Lap
from eggroll_rl.scoring import Scores
from eggroll_rl.update import Update


class RunFolder:
    """Paths and appenders of a run."""

    def __init__(self, path: Path):
        self.path = path
        self.recipe_file = path / "recipe.yaml"
        self.journal_file = path / "journal.jsonl"
        self.snapshots = path / "snapshots"
        self.views = (path / "metrics.jsonl", path / "samples.jsonl")
        self.curve = path / "learning_curve.png"
        self.model = path / "model"

    @property
    def way_on(self) -> str:
        """The command that goes on with this run."""
        return f"eggroll-rl train --resume {shlex.quote(str(self.path))}"

    def refuse_existing(self) -> None:
        """Raise UsageError where the folder exists with something in it."""
        if self.path.exists() and (not self.path.is_dir() or any(p.suffix != SCRATCH for p in self.path.iterdir())):
            another = "choose another output_dir=..."
            if self.journal_file.is_file() and not self.journal().is_complete:
                raise UsageError(
                    f"{self.path} holds a run that was cut short: go on with `{self.way_on}`, or {another}"
                )
            raise UsageError(f"{self.path} exists and is never overwritten: {another}, or remove it")

    def begin(self, recipe: Recipe, engine: Engine) -> Journal:
        """The journal, open for records; where there is none yet, the folder is made.

        Raises:
            UsageError: the engine's model is not the one that the run began with.
        """
        weights = engine.weights_hash()
        if self.journal_file.is_file():
            journal = self.journal(append=True)
            try:
                journal.check_base(weights)
            except UsageError:
                journal.close()
                raise
            return journal
        self.path.mkdir(parents=True, exist_ok=True)
        journal = Journal.create(self.journal_file, Header(recipe=recipe, base_sha256=weights))
        self.write_recipe(recipe)
        return journal

    def journal(self, append: bool = False) -> Journal:
        """The run's journal.

        Raises:
            UsageError: there is none, or see ``Journal``.
        """
        if not self.journal_file.is_file():
            raise UsageError(f"{self.path} is no run: it has no {self.journal_file.name}; name a run's output_dir")
        return Journal(self.journal_file, append)

    def write_recipe(self, recipe: Recipe) -> None:
        replace_file(self.recipe_file, lambda path: dump_recipe(recipe, path))

    def save_model(self, engine: Engine) -> None:
        replace_folder(self.model, engine.save)

    def metrics(self) -> list[dict[str, Any]]:
        """All records so far: those of generations have ``reward_mean``, those of evaluations ``accuracy``."""
        return [json.loads(line) for line in self.views[0].read_text(encoding="utf-8").splitlines()]

    def log_evaluation(self, record: dict[str, Any]) -> None:
        _append(self.views[0], [record])

    def log_generation(self, entry: Entry, update_rms: float) -> dict[str, Any]:
        """Append the record of a generation and its answers; returns the record."""
        record = entry.metrics | {"update_rms": update_rms}
        _append(self.views[1], entry.samples)
        _append(self.views[0], [record])
        return record

    def generations_logged(self) -> int:
        """Generations in the metrics, from the first on."""
        if not self.views[0].is_file():
            return 0
        with self.views[0].open("rb") as lines:
            records = takewhile(bool, map(_parsed, lines))
            return sum("reward_mean" in record for record in records)

    def rewind(self, generation: int) -> None:
        """Cut metrics and samples back to what was logged before the evaluation at ``generation``."""
        for path in self.views:
            if path.is_file():
                with path.open("rb") as lines:
                    kept = takewhile(lambda line: _parsed(line).get("generation", generation) < generation, lines)
                    size = sum(map(len, kept))
                os.truncate(path, size)

    def sync(self) -> None:
        """Put metrics and samples on the disk."""
        for path in self.views:
            sync(path)

    @contextmanager
    def explained(self, journal: Journal, say: Callable[[str], None]) -> Iterator[None]:
        """Where the block is cut short, say where the run stands and how to go on."""
        complete = False
        try:
            yield
            complete = True
        finally:
            if not complete:
                say(f"cut short after {len(journal)} generations; go on with `{self.way_on}`")


def describe(
    update: Update, examples: Batch, completions: Sequence[Sequence[Completion]], scores: Scores, lap: Lap
) -> Entry:
    """What the journal keeps of a generation: besides the update its metrics and a few of its answers.

    Its seconds begin when the generation before was ready to be journalled, and so count that one's step.
    """
    generation = update.population.generation
    rewards_NP = scores.rewards_NP
    rewards_N = rewards_NP.nanmean(1)
    answers = [answer for row in completions for answer in row]
    tokens = sum(len(answer.token_ids) for answer in answers)
    best = int(rewards_N.nan_to_num(nan=-math.inf).argmax())
    metrics = {
        "generation": generation,
        "reward_mean": _number(rewards_NP.nanmean()),
        "reward_std": _number(rewards_N[~rewards_N.isnan()].std(correction=0)),
        "reward_best_member": _number(rewards_N[best]),
        "rewards": {name: _number(values.nanmean()) for name, values in scores.by_function.items()},
        "reward_failures": scores.failures,
        "finished": sum(answer.finished for answer in answers) / len(answers),
        "tokens": tokens,
        "lr": update.lr,
        "seconds": lap.total,
        "seconds_generation": lap.seconds,
        **{f"seconds_{part}": seconds for part, seconds in lap.parts.items()},
        "tokens_per_second": tokens / lap.seconds,
    }
    samples = []
    for member in dict.fromkeys((0, len(completions) - 1, best)):
        sample: dict[str, Any] = {"generation": generation, "member": member, "prompt": examples.prompts[0]}
        answer, reward = completions[member][0], _number(rewards_NP[member, 0])
        samples.append(sample | {"completion": answer.text, "reward": reward})
    return Entry(update, metrics, samples)


def _append(path: Path, records: Sequence[dict[str, Any]]) -> None:
    # What UTF-8 has no code for, half a surrogate pair, becomes the escape that JSON has for it.
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    try:
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(lines)
    except OSError as error:
        raise cannot_write(path, error) from error


def _parsed(line: bytes) -> dict[str, Any]:
    """The record of a line; an empty one where a crash tore it."""
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _number(value: Tensor) -> float | None:
    """A number for JSON, which has no NaN."""
    return value.item() if value.isfinite() else None
