"""Which examples a generation sees: their rendered prompts, and the columns that rewards read."""

import copy
import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b, sha256
from itertools import count, islice
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np

from eggroll_rl.config import DataConfig, Half
from eggroll_rl.data.checking import RowCheck
from eggroll_rl.data.generated import Exhausted
from eggroll_rl.data.sources import Row, Selection, Source, is_countable, is_undivided, open_source, split_by_question
from eggroll_rl.data.template import Template, value_of
from eggroll_rl.system.errors import UsageError

if TYPE_CHECKING:
    from eggroll_rl.data.encoding import PromptCheck
    from eggroll_rl.es.rollout import Prompt

logger = logging.getLogger(__name__)

HALVES = get_args(Half)
SEED_SPAN = 2**31  # generated problems that each seed has for itself
REWARD_ARGUMENTS = {"prompts", "completions"}


class Batch(NamedTuple):
    """P examples: rendered prompts (text or chat messages), every column [P], and each example's index in its split."""

    prompts: "list[Prompt]"
    columns: dict[str, list[Any]]
    indices: list[int]

    def repeated(self, times: int) -> "Batch":
        """The batch with each example repeated ``times`` times, side by side."""
        columns = {name: _repeated(values, times) for name, values in self.columns.items()}
        return Batch(_repeated(self.prompts, times), columns, _repeated(self.indices, times))


class Examples:
    """One side of the data, training or held-out: its rows, and how they are renamed, rendered and checked."""

    def __init__(self, rows: Source, config: DataConfig, name: str, template: Template, check: "PromptCheck | None"):
        self.rows, self.config, self.name, self.template, self.check = rows, config, name, template, check
        self.columns = columns_of(rows[0], config, name, template)

    def prompt(self, index: int, row: Row) -> "Prompt":
        """The prompt of a row, ``rows[index]``.

        Raises:
            UsageError: the row cannot be rendered, or the model cannot be asked the prompt; names the row.
        """
        prompt = self._render(index, row)
        if self.check:
            with self._naming_row(index):
                self.check(prompt)
        return prompt

    def question(self, index: int, row: Row) -> bytes:
        """A digest of what a row asks, 16 bytes: of its prompt, or of the value of the column ``group``."""
        group = self.config.group
        asked = self._render(index, row) if group is None else value_of(named(row, self.config.columns), group)
        return blake2b(json.dumps(asked, default=repr).encode(), digest_size=16).digest()

    def _render(self, index: int, row: Row) -> "Prompt":
        with self._naming_row(index):
            return self.template(named(row, self.config.columns))

    @contextmanager
    def _naming_row(self, index: int) -> Iterator[None]:
        """Put the row's number and the data's name in front of a UsageError of the block."""
        try:
            yield
        except UsageError as error:
            number = self.rows.numbers[index] if isinstance(self.rows, Selection) else index
            raise UsageError(f"row {number + 1} of {self.name}: {error}") from error


@dataclass(frozen=True)
class Dataset:
    """Training and held-out examples of a recipe; ``columns`` are the names of a batch's columns."""

    config: DataConfig
    seed: int
    train_examples: Examples
    held_out_examples: Examples
    checked: RowCheck

    @property
    def train(self) -> Source:
        return self.train_examples.rows

    @property
    def held_out(self) -> Source:
        return self.held_out_examples.rows

    @property
    def template(self) -> Template:
        return self.train_examples.template

    @property
    def columns(self) -> list[str]:
        return self.train_examples.columns

    def batch(self, generation: int) -> Batch:
        """The P = ``config.prompts`` training examples of a generation, a pure function of (seed, generation).

        Rows are walked epoch by epoch, each epoch in its own order; of generated problems every seed has its own.

        Raises:
            UsageError: a row is at fault; in large data sets this may be found only now.
        """
        prompts, first = self.config.prompts, generation * self.config.prompts
        if is_countable(self.train):
            return self._take(self.train_examples, shuffled(self.seed, first, prompts, len(self.train)))
        start = self.seed % SEED_SPAN * SEED_SPAN + first
        return self._take(self.train_examples, range(start, start + prompts))

    def test(self, n: int, half: Half | None = None) -> Batch:
        """The first ``n`` held-out examples, or the first ``n`` of one ``half``, in fixed order; or all there are.

        A hash of what an example asks decides its half, so the halves have no question in common.

        Raises:
            UsageError: there are none, or the generator makes fewer than ``n``.
        """
        side, rows = self.held_out_examples, self.held_out
        indices = range(len(rows)) if is_countable(rows) else count()
        if half is None:
            return self._take(side, islice(indices, n))
        wanted = HALVES.index(half)
        of_half = (index for index in indices if side.question(index, rows[index])[0] % 2 == wanted)
        chosen: list[int] = []
        with suppress(Exhausted):  # the generator has no more
            chosen.extend(islice(of_half, n))
        if n and not chosen:
            raise UsageError(f"none of the held-out examples is in the half for {half}: hold out more")
        return self._take(side, chosen)

    def fingerprint(self) -> str:
        """SHA-256 of the examples, in hexadecimal: the rows of both sides, and how they are renamed and rendered.

        Generated problems follow from the recipe and the generator's version, so only the first is hashed.
        """
        digest = sha256(self.config.model_dump_json(include={"prompt", "chat_template", "columns"}).encode())
        if self.config.system is not None:
            digest.update(b"\n\n" + self.config.system.encode())
        for rows in (self.train, self.held_out):
            digest.update(b"\n\n")
            for row in rows if is_countable(rows) else [rows[0]]:
                digest.update(json.dumps(row, default=repr).encode() + b"\n")
        return digest.hexdigest()

    def _take(self, side: Examples, indices: Iterable[int]) -> Batch:
        self.checked.refuse_fault()
        chosen = list(indices)
        raw = [side.rows[index] for index in chosen]
        prompts = [side.prompt(index, row) for index, row in zip(chosen, raw, strict=True)]
        rows = [renamed(row, self.config.columns) for row in raw]
        return Batch(prompts, {column: [row[column] for row in rows] for column in self.columns}, chosen)


def _repeated(values: list[Any], times: int) -> list[Any]:
    return [value for value in values for _ in range(times)]


def shuffled(seed: int, first: int, count: int, size: int) -> list[int]:
    """``count`` indices from position ``first`` of an endless walk over ``size`` rows, permuted anew in each epoch."""
    epochs = range(first // size, (first + count - 1) // size + 1)
    # Raw Philox words, unlike Generator.permutation, are the same in every release of NumPy (NEP 19).
    draws = (np.random.Philox(key=epoch << 64 | seed).random_raw(size) for epoch in epochs)
    walk = np.concatenate([np.argsort(draw, kind="stable") for draw in draws])
    start = first - epochs.start * size
    return walk[start : start + count].tolist()


def renamed(row: Row, columns: dict[str, str]) -> Row:
    """``row`` with its columns under their new names, ``{new: old}``; a column keeps a field that is renamed out of
    it."""
    kept = {name: value for name, value in row.items() if name not in columns.values()}
    return kept | {new: value_of(row, old) for new, old in columns.items()}


def named(row: Row, columns: dict[str, str]) -> Row:
    """``row`` with its columns under their new and their old names, which is what a template may name."""
    return row | renamed(row, columns)


def load_data(config: DataConfig, seed: int, check: "PromptCheck | None" = None) -> Dataset:
    """Open a recipe's examples, and check that every prompt can be rendered, and (by ``check``) asked.

    What takes longer than some seconds is checked in the background; each row is checked before it is asked.

    Raises:
        UsageError: naming the file, row, dataset, split or column at fault, and the remedy.
    """
    template = Template(config.prompt, config.system)
    test_name = config.test_name or config.name
    train = Examples(open_source(config, config.name, "split", seed // SEED_SPAN), config, config.name, template, check)
    other: Source
    if is_countable(train.rows) and is_undivided(config):
        train.rows, other = split_by_question(train.rows, train.question, config.name)
    else:
        other = open_source(config, test_name, "test_split")
    held_out = Examples(other, config, test_name, template, check)
    lacking = [column for column in train.columns if column not in held_out.columns]
    if lacking:
        raise UsageError(
            f"the held-out examples of {test_name} lack {lacking}, which {config.name} has; add the columns"
        )
    return Dataset(config, seed, train, held_out, _checked(copy.copy(train), copy.copy(held_out)))


def _checked(train: Examples, held_out: Examples) -> RowCheck:
    """Start the check of all rows that can be counted; its thread gets a tokenizer of its own."""

    def copy_tokenizer() -> None:
        train.check = held_out.check = train.check and train.check.copy()

    return RowCheck(_each_row(train, held_out), copy_tokenizer)


def _each_row(train: Examples, held_out: Examples) -> Iterator[None]:
    """Check one row at each step, held-out rows first; at the end, warn of questions that both sides have."""
    questions: set[bytes] = set()
    trained_on: set[bytes] = set()
    is_one_source = train.config.test_name == train.config.name
    for side in (held_out, train):
        for index, row in enumerate(side.rows) if is_countable(side.rows) else ():
            side.prompt(index, row)
            question = side.question(index, row)
            if side is held_out:
                questions.add(question)
            elif question in questions:
                trained_on.add(question)
            yield
    if trained_on and not is_one_source:
        logger.warning(
            "%d of the %d held-out questions of %s are in the training data %s too: accuracy on them says what was "
            "learnt by heart",
            *(len(trained_on), len(questions), held_out.name, train.name),
        )


def columns_of(row: Row, config: DataConfig, name: str, template: Template) -> list[str]:
    """The names of the columns of ``row`` after renaming.

    Raises:
        UsageError: the recipe names a column that ``row`` lacks, or a column has the name of a reward's own argument.
    """
    for old in config.columns.values():
        if value_of(row, old) is None and old not in row:
            raise UsageError(f"data.columns renames {old!r}, which is not a column of {name}; it has {', '.join(row)}")
    shown = renamed(row, config.columns)
    columns, known = list(shown), f"the columns of {name} are {', '.join(shown)}"
    visible = named(row, config.columns)
    for field, key in template.fields.items():
        if value_of(visible, field) is None and field not in visible:
            if config.prompt is None and key == "data.prompt":
                raise UsageError(
                    f"no column 'prompt': {known}; set data.prompt to a template such as '{{{columns[0]}}}'"
                )
            raise UsageError(f"{key} names a column {field!r} that does not exist: {known}")
    if config.group is not None and value_of(visible, config.group) is None and config.group not in visible:
        raise UsageError(f"data.group names a column {config.group!r} that does not exist: {known}")
    for column in REWARD_ARGUMENTS.intersection(columns):
        raise UsageError(
            f"column {column!r} of {name} has the name of an argument of every reward; rename it by data.columns"
        )
    return columns
