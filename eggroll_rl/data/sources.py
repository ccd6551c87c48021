"""Where examples come from: a generator (Countdown, reasoning-gym), a file, or a Hugging Face dataset."""

import json
import logging
import reprlib
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from hashlib import blake2b
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, Protocol, TypeGuard

from eggroll_rl.config import DataConfig
from eggroll_rl.data.countdown import Countdown
from eggroll_rl.data.generated import TEST_SHARE, Split
from eggroll_rl.data.gym import PREFIX, ReasoningGym
from eggroll_rl.system.errors import UsageError
from eggroll_rl.system.hub import refuse_unknown_dataset

Row = dict[str, Any]


class Generator(Protocol):
    """An endless sequence of rows; row ``index`` is always the same."""

    def __getitem__(self, index: int, /) -> Row: ...


class Countable(Protocol):
    """Rows that can be counted, in memory or on the disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Row: ...

    def __iter__(self) -> Iterator[Row]: ...


class Selection:
    """The rows of a table that have these ``numbers``, which ascend."""

    def __init__(self, table: Countable, numbers: Sequence[int]):
        self.table, self.numbers = table, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int, /) -> Row:
        return self.table[self.numbers[index]]

    def __iter__(self) -> Iterator[Row]:
        numbers = iter(self.numbers)
        wanted = next(numbers, None)
        for number, row in enumerate(self.table):  # on a disk, reading in order is faster than by number
            if number == wanted:
                yield row
                wanted = next(numbers, None)


Source = Countable | Generator


def is_countable(rows: Source) -> TypeGuard[Countable]:
    """Whether the rows can be counted; else they are endless."""
    return isinstance(rows, Sized)


ENTRY_POINTS = "eggroll_rl.tasks"  # the group of other packages' generators
LOADERS = {".csv": "csv", ".json": "json", ".parquet": "parquet"}  # of the package datasets, for single files
FILES = (".jsonl", *LOADERS)


def open_source(config: DataConfig, name: str, key: Literal["split", "test_split"], series: int = 0) -> Source:
    """The rows of one side, from the generator, file or dataset of this name; all have the same columns.

    Raises:
        UsageError: naming the file, line, dataset or split at fault, and the remedy.
    """
    split: str = getattr(config, key)
    if not is_generated(name) and not is_file(name):
        if config.test_name is None and config.split == config.test_split:
            raise UsageError(f"data.split and data.test_split are both {split!r}; take say train[:90%] and train[90%:]")
        return read_dataset(name, config.subset, split)
    for unused in (key,) if config.test_name else ("split", "test_split"):
        if (value := getattr(config, unused)) != DataConfig.model_fields[unused].default:
            raise UsageError(f"data.{unused}={value!r} is for Hugging Face datasets, and {name} is none; drop it")
    if is_generated(name):
        return generator_of(name)(config, "train" if key == "split" else "test", series)
    return read_file(Path(name).expanduser())


def is_generated(name: str) -> bool:
    """Whether a generator makes the examples of this name."""
    return name == "countdown" or name.startswith(PREFIX) or name in brought_generators()


def brought_generators() -> dict[str, EntryPoint]:
    """The generators that other packages bring, by name.

    An entry point of the group ``eggroll_rl.tasks`` is a name, and a class that derives from ``Problems``: it is called
    with the recipe's section ``data``, ``train`` or ``test``, and the number of a series.
    """
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def generator_of(name: str) -> Callable[[DataConfig, Split, int], Generator]:
    """The class whose instances generate the examples of this name.

    Raises:
        UsageError: another package brings it, and it does not load.
    """
    if name == "countdown":
        return Countdown
    if name.startswith(PREFIX):
        return ReasoningGym
    point = brought_generators()[name]
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise UsageError(f"data.name={name}: {point.value} does not load: {error}") from error


def locate_data(config: DataConfig) -> None:
    """Check that both sides of the data can be found, without reading them.

    Raises:
        UsageError: a dataset is in no cache, and the hub cannot be asked for it.
    """
    for name in filter(None, (config.name, config.test_name)):
        if not is_generated(name) and not is_file(name) and not Path(name).exists():
            refuse_unknown_dataset(name)


def is_file(name: str) -> bool:
    """Whether a single file holds the examples of this name."""
    return name.lower().endswith(FILES)


def is_undivided(config: DataConfig) -> bool:
    """Whether a file or folder, all of one split, holds training and held-out examples alike."""
    if config.test_name is not None or is_file(config.name):
        return config.test_name is None
    if is_generated(config.name) or not Path(config.name).is_dir():
        return False
    from datasets import get_dataset_split_names

    return config.test_split == "test" and len(get_dataset_split_names(config.name, config.subset)) == 1


def read_file(path: Path) -> Countable:
    """The rows of a JSONL, JSON, CSV or Parquet file."""
    if not path.is_file():
        raise UsageError(f"no file {path}; data.name and data.test_name take a file ({', '.join(FILES)}) or a dataset")
    kind = path.suffix.lower()
    return read_jsonl(path) if kind == ".jsonl" else load_table(LOADERS[kind], None, "train", path)


def read_jsonl(path: Path) -> list[Row]:
    """The objects of a JSONL file; columns that an object lacks and others have are None."""
    rows = []
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    rows.append(json.loads(line))
                    if not isinstance(rows[-1], dict):
                        raise UsageError(
                            f'{path}, line {number}: {reprlib.repr(rows[-1])} is not an object {{"column": value}}'
                        )
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}, line {number}: not JSON: {error.msg} at column {error.colno}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text: {error.reason}; convert it") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    if not rows:
        raise UsageError(f"{path} is empty; write one JSON object a line")
    columns = dict.fromkeys(column for row in rows for column in row)
    return [columns | row for row in rows]


def split_by_question(
    table: Countable, question: Callable[[int, Row], bytes], name: str
) -> tuple[Selection, Selection]:
    """Divide a table into training and held-out rows; rows that ask the same stay together.

    The least content hash of the rows that ask a question decides its side, whatever the order of the rows.

    Raises:
        UsageError: all rows ask the same.
    """
    questions: list[bytes] = []
    least: dict[bytes, bytes] = {}
    for number, row in enumerate(table):
        asked, content = question(number, row), _content(row)
        questions.append(asked)
        least[asked] = min(content, least.get(asked, content))
    if len(least) < 2:
        raise UsageError(
            f"{name} holds only one distinct row, none to hold out (rows that ask the same are one); add rows, or set "
            "data.test_name"
        )
    held_out = {asked for asked, digest in least.items() if int.from_bytes(digest) % TEST_SHARE == 0}
    if len(held_out) in (0, len(least)):
        held_out = {min(least, key=least.__getitem__)}
    sides: tuple[list[int], list[int]] = ([], [])
    for number, asked in enumerate(questions):
        sides[asked in held_out].append(number)
    return Selection(table, sides[0]), Selection(table, sides[1])


def _content(row: Row) -> bytes:
    """A hash of a row's columns that have a value, whatever their order."""
    shown = {column: value for column, value in row.items() if value is not None}
    return blake2b(json.dumps(shown, sort_keys=True, default=repr).encode(), digest_size=8).digest()


def read_dataset(name: str, subset: str | None, split: str) -> Countable:
    """A split of a Hugging Face dataset: from the hub, the local cache, or a folder of data files."""
    if Path(name).is_file():
        raise UsageError(f"{name}: a single file must be one of {', '.join(FILES)}; convert it")
    if not Path(name).exists():
        refuse_unknown_dataset(name)
    return load_table(name, subset, split)


def load_table(name: str, subset: str | None, split: str, file: Path | None = None) -> Countable:
    """Load a split by ``datasets.load_dataset``; its rows stay on the disk until they are read."""
    import datasets

    what = f"the file {file}" if file else f"the dataset {name!r} (subset {subset!r}, split {split!r})"
    try:
        if file and not file.stat().st_size:
            raise ValueError("it is empty")
        with _silent(logging.getLogger(datasets.__name__)):  # its message is in the error
            table: Any = datasets.load_dataset(name, subset, split=split, data_files=str(file) if file else None)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        cause = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else error
        reason = " ".join(str(cause or error).split()).rstrip(".")
        raise UsageError(f"cannot load {what}: {reason}") from error
    if not len(table):
        raise UsageError(f"{what} has no rows; take another split, or fill it")
    return table


@contextmanager
def _silent(logger: logging.Logger) -> Iterator[None]:
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)
