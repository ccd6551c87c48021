"""Prompts and answer columns: which examples a generation sees, rendered, with the columns that its rewards read."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from eggroll_rl.config import DataConfig
from eggroll_rl.data.sources import Row, Rows, open_splits
from eggroll_rl.data.template import Template
from eggroll_rl.system.errors import UsageError

if TYPE_CHECKING:
    from eggroll_rl.es.rollout import Prompt

SEED_SPAN = 2**31  # generated problems that each seed has for itself
REWARD_ARGUMENTS = {"prompts", "completions"}


class Batch(NamedTuple):
    """P examples: rendered prompts (text or chat messages), every column [P], and each example's index in its split."""

    prompts: "list[Prompt]"
    columns: dict[str, list[Any]]
    indices: list[int]


@dataclass(frozen=True)
class Dataset:
    """Training and held-out examples; ``columns`` are the names of a batch's columns."""

    config: DataConfig
    seed: int
    train: Rows
    held_out: Rows
    template: Template
    columns: list[str]

    def batch(self, generation: int) -> Batch:
        """The P = ``config.prompts`` training examples of a generation, a pure function of (seed, generation).

        Rows are walked epoch by epoch, each epoch in its own order; of generated problems every seed has its own.
        """
        count, first = self.config.prompts, generation * self.config.prompts
        if isinstance(self.train, list):
            return self._take(self.train, shuffled(self.seed, first, count, len(self.train)))
        start = self.seed % SEED_SPAN * SEED_SPAN + first
        return self._take(self.train, range(start, start + count))

    def test(self, n: int, skip: int = 0) -> Batch:
        """The first ``n`` held-out examples after ``skip``, in fixed order; all of them where there are fewer.

        Raises:
            UsageError: nothing is left that differs from those skipped.
        """
        if not isinstance(self.held_out, list):  # the generator's are distinct
            return self._take(self.held_out, range(skip, skip + n))
        skipped, rest = self.held_out[:skip], range(skip, len(self.held_out))
        chosen = list(islice((index for index in rest if self.held_out[index] not in skipped), n))
        if n and not chosen:
            raise UsageError(
                f"there are {len(self.held_out)} held-out examples, and none is left after the first {skip} and their "
                "copies: lower evaluation.n, or hold out more"
            )
        return self._take(self.held_out, chosen)

    def fingerprint(self) -> str:
        """SHA-256 of what the examples are, in hexadecimal: the rows of both sides, how they are renamed and rendered.

        Of generated problems, which are a function of the recipe and of the generator's version, the first are taken.
        """
        digest = sha256(self.config.model_dump_json(include={"prompt", "columns"}).encode())
        for rows in (self.train, self.held_out):
            digest.update(b"\n\n")
            for row in rows if isinstance(rows, list) else [rows[0]]:
                digest.update(json.dumps(row, default=repr).encode() + b"\n")
        return digest.hexdigest()

    def _take(self, source: Rows, indices: Iterable[int]) -> Batch:
        chosen = list(indices)
        rows = [renamed(source[index], self.config.columns) for index in chosen]
        columns = {column: [row[column] for row in rows] for column in self.columns}
        return Batch([self.template(row) for row in rows], columns, chosen)


def shuffled(seed: int, first: int, count: int, size: int) -> list[int]:
    """``count`` indices from position ``first`` of an endless walk over ``size`` rows, permuted anew in each epoch."""
    epochs = range(first // size, (first + count - 1) // size + 1)
    # Raw Philox words, unlike Generator.permutation, are the same in every release of NumPy (NEP 19).
    draws = (np.random.Philox(key=epoch << 64 | seed).random_raw(size) for epoch in epochs)
    walk = np.concatenate([np.argsort(draw, kind="stable") for draw in draws])
    start = first - epochs.start * size
    return walk[start : start + count].tolist()


def renamed(row: Row, columns: dict[str, str]) -> Row:
    """``row`` with its columns under their new names, ``{new: old}``."""
    kept = {name: value for name, value in row.items() if name not in columns.values()}
    return kept | {new: row[old] for new, old in columns.items()}


def load_data(config: DataConfig, seed: int) -> Dataset:
    """Open a recipe's examples and check that every prompt can be rendered; needs no model.

    Raises:
        UsageError: naming the file, line, dataset, split or column at fault, and the remedy.
    """
    template = Template(config.prompt)
    train, held_out = open_splits(config)
    test_name = config.test_name or config.name
    columns = check_rows(train, config, config.name, template)
    test_columns = check_rows(held_out, config, test_name, template)
    lacking = [column for column in columns if column not in test_columns]
    if lacking:
        raise UsageError(
            f"the held-out examples of {test_name} lack {lacking}, which {config.name} has; add the columns"
        )
    return Dataset(config, seed, train, held_out, template, columns)


def check_rows(source: Rows, config: DataConfig, name: str, template: Template) -> list[str]:
    """Names of the columns after renaming, once every row (of a generator, the first) has been rendered."""
    rows = source if isinstance(source, list) else [source[0]]
    for old in config.columns.values():
        if old not in rows[0]:
            raise UsageError(
                f"data.columns renames {old!r}, which is not a column of {name}; it has {', '.join(rows[0])}"
            )
    columns = list(renamed(rows[0], config.columns))
    for field in template.fields:
        if field not in columns:
            known = f"the columns of {name} are {', '.join(columns)}"
            if config.prompt is None:
                raise UsageError(
                    f"no column 'prompt': {known}; set data.prompt to a template such as '{{{columns[0]}}}'"
                )
            raise UsageError(f"data.prompt names a column {field!r} that does not exist: {known}")
    for column in REWARD_ARGUMENTS.intersection(columns):
        raise UsageError(
            f"column {column!r} of {name} is what a reward calls its own argument; rename it by data.columns"
        )
    for row in rows:
        template(renamed(row, config.columns))
    return columns
