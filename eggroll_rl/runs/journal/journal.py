"""The journal of a run: from it, the base model and the whitening of the noise, the weights of any generation follow.

A file of ``records``: first the header; then, in the order of events, updates (written before the step is taken),
evaluations, hashes of the weights, and the end.

Legend: N members.
"""

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Self

from pydantic import BaseModel, ValidationError

from eggroll_rl import __version__
from eggroll_rl.config import Recipe
from eggroll_rl.es.noise import NOISE_VERSION
from eggroll_rl.es.population import Population
from eggroll_rl.es.update import Update
from eggroll_rl.runs.journal.records import Record, Records, record_line
from eggroll_rl.system.durable import replace_file
from eggroll_rl.system.errors import UsageError

logger = logging.getLogger(__name__)


class Header(BaseModel):
    """What a run began with: its recipe, and hashes of its base model's weights and of its data.

    ``data_sha256`` is that of ``Dataset.fingerprint``, ``batch_bytes`` that of the engine, ``whitening_sha256`` that of
    the tensors that whiten the noise; None in journals that are older than these, or where noise is plain.
    """

    recipe: Recipe
    base_sha256: str
    data_sha256: str | None = None
    batch_bytes: int | None = None
    whitening_sha256: str | None = None
    noise_version: int = NOISE_VERSION
    package_version: str = __version__


class Entry(NamedTuple):
    """One generation: its update, its metrics (all but the step's) and a few of its answers."""

    update: Update
    metrics: dict[str, Any]
    samples: list[dict[str, Any]]

    @property
    def generation(self) -> int:
        return self.update.population.generation


class Journal:
    """Records of one run; its length is the number of updates. Used as a context manager.

    Args:
        path: an existing journal.
        append: open it for more records: no other process may do the same.

    Attributes:
        header: what the run began with.
        evaluations: generation -> record of the held-out accuracy.
        hashes: generation -> SHA-256 of the weights after so many updates.
        ended: after how many updates the run came to its end; None: it has not.
        seconds: of training so far.

    Raises:
        UsageError: a record is damaged or missing, the noise is of another version, or another process appends.
    """

    def __init__(self, path: Path, append: bool = False):
        self.path = path
        self.evaluations: dict[int, dict[str, Any]] = {}
        self.hashes: dict[int, str] = {}
        self.ended: int | None = None
        self.seconds = 0.0
        self._updates: list[int] = []  # where they begin in the file
        with ExitStack() as on_error:
            self._records = Records(path, append)
            on_error.callback(self.close)
            records = self._records.scan()
            self.header = _header(path, next(records, None))
            for position, record in records:
                self._index(record, position)
            on_error.pop_all()

    @classmethod
    def create(cls, path: Path, header: Header) -> Self:
        """A new journal, open for records."""
        line = record_line({"kind": "run", **header.model_dump(mode="json")})
        replace_file(path, lambda scratch: scratch.write_bytes(line))
        return cls(path, append=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let others append."""
        self._records.close()

    def __len__(self) -> int:
        return len(self._updates)

    @property
    def recipe(self) -> Recipe:
        return self.header.recipe

    @property
    def is_complete(self) -> bool:
        """Whether the run came to its end, and has not gone on since."""
        return self.ended == len(self)

    def has_left(self, recipe: Recipe) -> bool:
        """Whether the run has not reached its end, or the recipe's generations and minutes allow more updates."""
        in_time = recipe.minutes is None or self.seconds < 60 * recipe.minutes
        return not self.is_complete or (len(self) < recipe.generations and in_time)

    def remaining(self, generations: int) -> range:
        """Of a run of ``generations``, those that are not journalled yet."""
        return range(len(self), generations)

    def entries(self, start: int = 0, stop: int | None = None) -> Iterator[Entry]:
        """The updates of the generations from ``start``, read one at a time."""
        for record in self._records.read(self._updates[start:stop]):
            sigma = record.get("sigma", 0.0)  # 0: the recipe's, as in journals that are older than this
            population = Population(self.recipe.seed, record["generation"], self.recipe.population, sigma)
            update = Update.of(population, record["weights"], record["lr"])
            yield Entry(update, record["metrics"], record["samples"])

    def seconds_at(self, generation: int) -> float:
        """Seconds of training when the journal had ``generation`` updates."""
        last = self.entries(generation - 1, generation) if generation > 0 else iter(())
        return next((entry.metrics["seconds"] for entry in last), 0.0)

    def append(self, entry: Entry) -> None:
        """Add a generation; when this returns, it is on the disk.

        Raises:
            UsageError: the disk is full or refuses; the records before are intact.
        """
        update = entry.update
        numbers = {"lr": update.lr, "sigma": update.population.sigma, "weights": update.packed()}
        facts = {**numbers, "metrics": entry.metrics, "samples": entry.samples}
        self._write("update", entry.generation, facts)

    def retract(self) -> None:
        """Remove the last update and every record after it, because its step overflows."""
        self._records.cut(self._updates.pop())

    def append_evaluation(self, generation: int, seconds: float, summary: dict[str, Any]) -> None:
        """Add the record of an evaluation after ``generation`` updates and so many seconds of training."""
        self._write("evaluation", generation, {"seconds": seconds, **summary})

    def append_hash(self, generation: int, sha256: str) -> None:
        """Add the hash of the weights after ``generation`` updates; if there is one already, ``compare`` it."""
        if generation not in self.hashes:
            self._write("weights", generation, {"sha256": sha256})
        self.compare(generation, sha256)

    def compare(self, generation: int, sha256: str) -> None:
        """Warn if the journal has another hash of the weights after ``generation`` updates."""
        known = self.hashes.get(generation, sha256)
        if sha256 != known:
            message = (
                "generation %d: the weights' hash is %s here, and was %s in the run: they agree within rounding only"
            )
            logger.warning(message, generation, sha256, known)

    def append_end(self, sha256: str, seconds: float) -> None:
        """Mark the run complete after so many seconds of training, with the hash of its weights.

        Written last: where other files of the run are missing by then, a resumed run makes them again.
        """
        self.append_hash(len(self), sha256)
        if not self.is_complete:
            self._write("end", len(self), {"seconds": seconds})

    def check_base(self, sha256: str) -> None:
        """Raise UsageError where ``sha256`` is not the hash of the run's base model."""
        if sha256 != self.header.base_sha256:
            raise UsageError(
                f"{self.recipe.model!r} is not the model that this run began with: its weights have the SHA-256 "
                f"{sha256}, and {self.path} says {self.header.base_sha256}; put the old one back"
            )

    def check_data(self, sha256: str) -> None:
        """Raise UsageError where ``sha256`` is not the fingerprint of the run's data."""
        if self.header.data_sha256 not in (None, sha256):
            raise UsageError(
                f"the data of {self.recipe.source} changed since this run began: its SHA-256 is {sha256}, and "
                f"{self.path} says {self.header.data_sha256}; put the old examples back, or begin a new run"
            )

    def _write(self, kind: str, generation: int, facts: Record) -> None:
        record = {"kind": kind, "generation": generation, **facts}
        self._index(record, self._records.append(record))

    def _index(self, record: Record, position: int) -> None:
        """Add a record, which begins at this position of the file, to the attributes."""
        kind, generation = record.pop("kind"), record["generation"]
        if kind == "update":
            if generation != len(self):
                raise UsageError(
                    f"{self.path}: the record of generation {len(self)} is missing, that of {generation} comes in its "
                    "place; put a copy back"
                )
            self._updates.append(position)
            self.seconds = record["metrics"]["seconds"]
        elif kind == "evaluation":
            self.evaluations[generation] = record
            self.seconds = record["seconds"]
        elif kind == "weights":
            self.hashes[generation] = record["sha256"]
        elif kind == "end":
            self.ended, self.seconds = generation, record["seconds"]


def _header(path: Path, first: tuple[int, Record] | None) -> Header:
    record = first[1] if first else {}
    if record.pop("kind", None) != "run":
        raise UsageError(f"{path} does not begin with the header of a run; put a copy back")
    version, package = record["noise_version"], record["package_version"]
    if version != NOISE_VERSION:
        remedy = "upgrade eggroll-rl" if version > NOISE_VERSION else f"install eggroll-rl {package}"
        raise UsageError(
            f"{path} was written with noise version {version} (eggroll-rl {package}), and eggroll-rl {__version__} "
            f"makes version {NOISE_VERSION}: {remedy}"
        )
    try:
        return Header.model_validate(record)
    except ValidationError as error:
        raise UsageError(
            f"{path} was written by eggroll-rl {package}, whose recipes {__version__} does not read: install {package}"
        ) from error
