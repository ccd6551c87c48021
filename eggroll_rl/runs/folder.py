"""The folder of one run.

    inputs/  whitening.npz  recipe.yaml  journal.jsonl  snapshots/  metrics.jsonl  samples.jsonl  answers.jsonl
    environment.json  learning_curve.png  report.html  model/

The journal is the run; metrics, samples and answers (to held-out problems) are views of it, for people and plots.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

from eggroll_rl.config import Recipe, dump_recipe
from eggroll_rl.runs.journal import Entry, Journal
from eggroll_rl.system.command import resume_command
from eggroll_rl.system.durable import (
    SCRATCH,
    cannot_write,
    json_text,
    remove,
    replace_file,
    replace_folder,
    sync,
    write_json,
)
from eggroll_rl.system.environment import environment
from eggroll_rl.system.errors import UsageError
from eggroll_rl.system.ownership import LOCK, owned

INPUTS = "inputs"  # holds the data or model that a program writes into the folder before the run begins
WHITENING = "whitening.npz"  # is written before the journal that makes the folder a run


class RunFolder:
    """The paths in a run's folder, and methods that check, write and read its files."""

    def __init__(self, path: Path):
        self.path = path
        self.inputs = path / INPUTS
        self.options_file = self.inputs / "options.json"  # of the trainer that began it
        self.recipe_file = path / "recipe.yaml"
        self.journal_file = path / "journal.jsonl"
        self.whitening_file = path / WHITENING
        self.grpo_file = path / "grpo.json"  # in place of a journal
        self.snapshots = path / "snapshots"
        self.metrics_file = path / "metrics.jsonl"
        self.samples_file = path / "samples.jsonl"
        self.answers_file = path / "answers.jsonl"
        self.views = (self.metrics_file, self.samples_file, self.answers_file)
        self.environment_file = path / "environment.json"
        self.curve = path / "learning_curve.png"
        self.report = path / "report.html"
        self.model = path / "model"

    def refuse_unusable(self) -> None:
        """Raise UsageError where the folder exists with something in it, or cannot be made."""
        if is_in_use(self.path):
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

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Own the folder, which is empty or is made; it is removed again if the block writes no file into it.

        Raises:
            UsageError: another process owns it, something is in it, or it cannot be made.
        """
        with owned(self.path):
            self.refuse_unusable()
            yield

    @contextmanager
    def reopened(self) -> Iterator[None]:
        """Own the folder of a run that is to go on.

        Raises:
            UsageError: another process owns it, or it holds no run that can go on.
        """
        self._refuse_without_journal()
        with owned(self.path):
            yield

    def write_recipe(self, recipe: Recipe) -> None:
        replace_file(self.recipe_file, lambda path: dump_recipe(recipe, path))

    def write_environment(self, recipe: Recipe) -> None:
        """Write device, system and versions of packages; a resumed run overwrites them."""
        write_json(self.environment_file, environment(recipe.engine.device))

    def sweep(self) -> None:
        """Remove the half-written files of a killed process."""
        for folder in filter(Path.is_dir, (self.path, self.snapshots)):
            for scratch in folder.glob(f"*{SCRATCH}"):
                remove(scratch)

    def journal(self, append: bool = False) -> Journal:
        """The run's journal.

        Raises:
            UsageError: there is none, or see ``Journal``.
        """
        self._refuse_without_journal()
        return Journal(self.journal_file, append)

    def _refuse_without_journal(self) -> None:
        if self.grpo_file.is_file():
            raise UsageError(
                f"{self.path} is a GRPO run, which keeps no journal: it cannot be resumed, verified or exported; begin "
                f"a new one with `eggroll-rl grpo`, or use its model in {self.model}"
            )
        if not self.journal_file.is_file():
            raise UsageError(f"{self.path} is no run: it has no {self.journal_file.name}; name a run's output_dir")

    def save_model(self, save: Callable[[Path], object]) -> None:
        """Let ``save`` write the model's folder."""
        replace_folder(self.model, save)

    def lacks(self, journal: Journal) -> list[str]:
        """Names of the files that a complete run has and this one has not; empty where all are here."""
        files = (self.recipe_file, *self.views, self.environment_file, self.curve, self.report)
        missing = [path.name for path in files if not path.is_file()]
        if not missing and len(self.metrics()) < len(journal) + len(journal.evaluations):
            missing.append(f"a part of {self.metrics_file.name}")
        if not (self.model / "config.json").is_file() or not any(self.model.glob("*.safetensors")):
            missing.append(self.model.name)
        return missing

    def metrics(self) -> list[dict[str, Any]]:
        """All records of ``metrics.jsonl``, of generations (these have ``lr``) and of evaluations."""
        return _records(self.metrics_file)

    def answers(self) -> list[dict[str, Any]]:
        """Records of the answers to the first held-out problems at each evaluation, with ``generation``, ``problem`` (a
        number), ``prompt``, ``completion`` and ``correct``."""
        return _records(self.answers_file)

    def log_evaluation(self, record: dict[str, Any]) -> dict[str, Any]:
        """Append an evaluation (see ``Evaluation.record``) to metrics and answers; returns its record of metrics."""
        facts = {key: value for key, value in record.items() if key not in ("answers", "marks")}
        answers = [
            {"generation": record["generation"], "problem": problem, **answer}
            for problem, answer in enumerate(record.get("answers", ()))
        ]
        _append(self.answers_file, answers)
        _append(self.metrics_file, [facts])
        return facts

    def log_generation(self, entry: Entry, update_rms: float) -> dict[str, Any]:
        """Append a journalled generation to metrics and samples; returns the record in the metrics."""
        return self.log(entry.metrics | {"update_rms": update_rms}, entry.samples)

    def log(self, record: dict[str, Any], samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Append a generation's record to the metrics and its samples to the samples; returns the record."""
        _append(self.samples_file, samples)
        _append(self.metrics_file, [record])
        return record

    def generations_logged(self) -> int:
        """How many generations the metrics hold without a gap; 0 where one of the ``views`` is missing."""
        if not all(map(Path.is_file, self.views)):
            return 0
        with self.metrics_file.open("rb") as lines:
            records = takewhile(bool, map(_parsed, lines))
            return sum("update_rms" in record for record in records)

    def rewind(self, generation: int) -> None:
        """Cut metrics, samples and answers back to the records of generations before ``generation``."""
        for path in self.views:
            if path.is_file():
                with path.open("rb") as lines:
                    kept = takewhile(lambda line: _parsed(line).get("generation", generation) < generation, lines)
                    size = sum(map(len, kept))
                os.truncate(path, size)

    def sync(self) -> None:
        """Sync metrics, samples and answers to the disk."""
        for path in filter(Path.is_file, self.views):
            sync(path)


def is_in_use(folder: Path) -> bool:
    """Whether ``folder`` is a file, or holds more than half-written files, a lock and what precedes a journal: then
    no run may begin in it."""
    if not folder.is_dir():
        return folder.exists()
    return any(path.suffix != SCRATCH and path.name not in (LOCK, INPUTS, WHITENING) for path in folder.iterdir())


def _append(path: Path, records: Sequence[dict[str, Any]]) -> None:
    # UTF-8 has no code for half a surrogate pair: it becomes JSON's escape for it.
    lines = "".join(json_text(record) + "\n" for record in records)
    try:
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(lines)
    except OSError as error:
        raise cannot_write(path, error) from error


def _records(path: Path) -> list[dict[str, Any]]:
    """The records of a file up to the first torn one; none where there is no file."""
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
