"""Where examples come from: a generator (Countdown, reasoning-gym), a JSONL file, or a Hugging Face dataset."""

import json
import reprlib
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, Protocol

from eggroll_rl.config import DataConfig
from eggroll_rl.data.countdown import Countdown
from eggroll_rl.data.gym import PREFIX, ReasoningGym
from eggroll_rl.system.errors import UsageError

Row = dict[str, Any]


class Generator(Protocol):
    """An endless sequence of rows; row ``index`` is always the same."""

    def __getitem__(self, index: int) -> Row: ...


Rows = list[Row] | Generator  # held in memory, or endless

TEST_SHARE = 10  # one distinct row in ten of a JSONL file is held out


def open_splits(config: DataConfig) -> tuple[Rows, Rows]:
    """The training and the held-out examples of a recipe; within each, all rows have the same columns.

    Raises:
        UsageError: naming the file, line, dataset or split at fault, and the remedy.
    """
    train = open_source(config, config.name, "split")
    if config.test_name is None and isinstance(train, list) and config.name.endswith(".jsonl"):
        return split_by_content(train, config.name)
    return train, open_source(config, config.test_name or config.name, "test_split")


def open_source(config: DataConfig, name: str, key: Literal["split", "test_split"]) -> Rows:
    """The examples of one side, from wherever ``name`` points."""
    split: str = getattr(config, key)
    if not is_generated(name) and not name.endswith(".jsonl"):
        if config.test_name is None and config.split == config.test_split:
            raise UsageError(f"data.split and data.test_split are both {split!r}; take say train[:90%] and train[90%:]")
        return read_dataset(name, config.subset, split)
    for unused in (key,) if config.test_name else ("split", "test_split"):
        if (value := getattr(config, unused)) != DataConfig.model_fields[unused].default:
            raise UsageError(f"data.{unused}={value!r} is for Hugging Face datasets, and {name} is none; drop it")
    if is_generated(name):
        generator = Countdown if name == "countdown" else ReasoningGym
        return generator(config, "train" if key == "split" else "test")
    return read_jsonl(Path(name).expanduser())


def is_generated(name: str) -> bool:
    """Whether a generator makes the examples of this name."""
    return name == "countdown" or name.startswith(PREFIX)


def read_jsonl(path: Path) -> list[Row]:
    """The objects of a file, one a line; what one lacks of the others' columns is None."""
    if not path.is_file():
        raise UsageError(f"no file {path}; data.name and data.test_name take a .jsonl file or a dataset's name")
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
    if not rows:
        raise UsageError(f"{path} is empty; write one JSON object a line")
    columns = dict.fromkeys(column for row in rows for column in row)
    return [columns | row for row in rows]


def split_by_content(rows: list[Row], name: str) -> tuple[list[Row], list[Row]]:
    """Training and held-out rows by a hash of their content, so that copies of a row stay together."""
    contents = ({column: value for column, value in row.items() if value is not None} for row in rows)
    digests = [blake2b(json.dumps(row, sort_keys=True).encode(), digest_size=8).digest() for row in contents]
    distinct = sorted(set(digests))
    if len(distinct) < 2:
        raise UsageError(f"{name} holds only one distinct row, none to hold out; add rows, or set data.test_name")
    held_out = {digest for digest in distinct if int.from_bytes(digest) % TEST_SHARE == 0}
    if len(held_out) in (0, len(distinct)):
        held_out = {distinct[0]}
    sides: tuple[list[Row], list[Row]] = ([], [])
    for row, digest in zip(rows, digests, strict=True):
        sides[digest in held_out].append(row)
    return sides


def read_dataset(name: str, subset: str | None, split: str) -> list[Row]:
    """A split of a Hugging Face dataset: from the hub, the local cache, or a folder of data files."""
    if Path(name).is_file():
        raise UsageError(f"{name}: of single files only .jsonl is read; put it in a folder of its own and name that")
    import datasets

    try:
        return datasets.load_dataset(name, subset, split=split).to_list()
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UsageError(f"cannot load the dataset {name!r} (subset {subset!r}, split {split!r}): {reason}") from error
