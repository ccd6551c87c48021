"""The folder of one run.

    recipe.yaml  journal.jsonl  snapshots/  metrics.jsonl  samples.jsonl  answers.jsonl  environment.json
    learning_curve.png  report.html  model/

The journal is the run; metrics, samples and answers (to held-out problems) are views of it, for people and plots.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

from torch import Tensor

from eggroll_rl.config import Recipe, dump_recipe, resume_command
from eggroll_rl.data.dataset import Batch
from eggroll_rl.engines.base import Engine
from eggroll_rl.es.rollout import Completion
from eggroll_rl.es.update import Update
from eggroll_rl.runs.journal import Entry, Header, Journal
from eggroll_rl.runs.progress import Lap
from eggroll_rl.scoring import Scores
from eggroll_rl.system.durable import SCRATCH, cannot_write, replace_file, replace_folder, sync
from eggroll_rl.system.environment import environment
from eggroll_rl.system.errors import UsageError

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)  # of the members' rewards, in the record of a generation


class RunFolder:
    """Paths and appenders of a run."""

    def __init__(self, path: Path):
        self.path = path
        self.recipe_file = path / "recipe.yaml"
        self.journal_file = path / "journal.jsonl"
        self.grpo_file = path / "grpo.json"  # in place of a journal
        self.snapshots = path / "snapshots"
        self.views = (path / "metrics.jsonl", path / "samples.jsonl", path / "answers.jsonl")
        self.environment_file = path / "environment.json"
        self.curve = path / "learning_curve.png"
        self.report = path / "report.html"
        self.model = path / "model"

    def refuse_unusable(self) -> None:
        """Raise UsageError where the folder exists with something in it, or cannot be made."""
        if self.path.exists() and (not self.path.is_dir() or any(p.suffix != SCRATCH for p in self.path.iterdir())):
            another = "choose another output_dir=..."
            if self.journal_file.is_file() and not self.journal().is_complete:
                go_on = f"go on with `{resume_command(self.path)}`"
                raise UsageError(f"{self.path} holds a run that was cut short: {go_on}, or {another}")
            raise UsageError(f"{self.path} exists and is never overwritten: {another}, or remove it")
        place = next(parent for parent in (self.path, *self.path.absolute().parents) if parent.exists())
        if not place.is_dir() or not os.access(place, os.W_OK):
            raise UsageError(
                f"{self.path} cannot be made: nothing can be written into {place}; choose another output_dir=..."
            )

    def make(self) -> None:
        """Make the folder, or raise UsageError where the system refuses."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.path, error) from error

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
        else:
            self.make()
            journal = Journal.create(self.journal_file, Header(recipe=recipe, base_sha256=weights))
            self.write_recipe(recipe)
        self.write_environment(recipe)
        return journal

    def journal(self, append: bool = False) -> Journal:
        """The run's journal.

        Raises:
            UsageError: there is none, or see ``Journal``.
        """
        if self.grpo_file.is_file():
            raise UsageError(
                f"{self.path} is a GRPO run, which keeps no journal: it cannot be resumed, verified or exported; begin "
                f"a new one with `eggroll-rl grpo`, or use its model in {self.model}"
            )
        if not self.journal_file.is_file():
            raise UsageError(f"{self.path} is no run: it has no {self.journal_file.name}; name a run's output_dir")
        return Journal(self.journal_file, append)

    def write_recipe(self, recipe: Recipe) -> None:
        replace_file(self.recipe_file, lambda path: dump_recipe(recipe, path))

    def write_environment(self, recipe: Recipe) -> None:
        """Note what the run runs on; of a resumed run, what it ran on last."""
        text = json.dumps(environment(recipe.engine.device), indent=2) + "\n"
        replace_file(self.environment_file, lambda path: path.write_text(text, encoding="utf-8"))

    def save_model(self, engine: Engine) -> None:
        replace_folder(self.model, engine.save)

    def metrics(self) -> list[dict[str, Any]]:
        """All records so far: those of generations have ``reward_mean``, those of evaluations ``accuracy``."""
        return _records(self.views[0])

    def answers(self) -> list[dict[str, Any]]:
        """The answers to the first held-out problems, at each evaluation: ``generation``, ``problem`` (its number),
        ``prompt``, ``completion`` and whether it is ``correct``."""
        return _records(self.views[2])

    def log_evaluation(self, record: dict[str, Any]) -> dict[str, Any]:
        """Append the record of an evaluation (see ``Evaluation.record``) and its answers; returns the record."""
        facts = {key: value for key, value in record.items() if key != "answers"}
        answers = [
            {"generation": record["generation"], "problem": problem, **answer}
            for problem, answer in enumerate(record.get("answers", ()))
        ]
        _append(self.views[2], answers)
        _append(self.views[0], [facts])
        return facts

    def log_generation(self, entry: Entry, update_rms: float) -> dict[str, Any]:
        """Append the record of a generation and its answers; returns the record."""
        return self.log(entry.metrics | {"update_rms": update_rms}, entry.samples)

    def log(self, record: dict[str, Any], samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Append a record of any trainer and its answers; returns the record."""
        _append(self.views[1], samples)
        _append(self.views[0], [record])
        return record

    def generations_logged(self) -> int:
        """Generations in the metrics, from the first on; 0 where one of the views is lost."""
        if not all(map(Path.is_file, self.views)):
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
        for path in filter(Path.is_file, self.views):
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
                say(f"cut short after {len(journal)} generations; go on with `{resume_command(self.path)}`")


def describe(
    update: Update, examples: Batch, completions: Sequence[Sequence[Completion]], scores: Scores, lap: Lap
) -> Entry:
    """What the journal keeps of a generation: besides the update its metrics and a few of its answers.

    Its seconds begin when the generation before was ready to be journalled, and so count that one's step.
    """
    generation = update.population.generation
    rewards_NP = scores.rewards_NP
    rewards_N = rewards_NP.nanmean(1)
    known_N = rewards_N[~rewards_N.isnan()]
    answers = [answer for row in completions for answer in row]
    tokens = sum(len(answer.token_ids) for answer in answers)
    best = int(rewards_N.nan_to_num(nan=-math.inf).argmax())
    metrics = {
        "generation": generation,
        "reward_mean": _number(rewards_NP.nanmean()),
        "reward_std": _number(known_N.std(correction=0)) if len(known_N) else None,
        "reward_quantiles": known_N.quantile(known_N.new_tensor(QUANTILES)).tolist() if len(known_N) else None,
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


def _records(path: Path) -> list[dict[str, Any]]:
    """All whole records of a file; none where it is absent."""
    if not path.is_file():
        return []
    with path.open("rb") as lines:
        return list(takewhile(bool, map(_parsed, lines)))


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
