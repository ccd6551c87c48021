"""An append-only file of JSON objects, one a line, each ending with the CRC-32 of what precedes that in its line."""

import fcntl
import json
import logging
import os
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from eggroll_rl.system.durable import cannot_write, json_text
from eggroll_rl.system.errors import UsageError

CHECKSUM = b', "crc32": "'  # cannot occur within a JSON string

Record = dict[str, Any]

logger = logging.getLogger(__name__)


class Records:
    """The records of an existing file.

    Args:
        append: for adding more; a torn last record is cut off by the first that is added.

    Raises:
        UsageError: another process adds records, or the file cannot be written.
    """

    def __init__(self, path: Path, append: bool = False):
        self.path = path
        self._end = 0
        self._descriptor = _open_locked(path) if append else None

    def scan(self) -> Iterator[tuple[int, Record]]:
        """All records and where they begin; a torn last one, which a crash leaves, is dropped with a warning.

        Raises:
            UsageError: a record is damaged, and not as a crash would leave it.
        """
        position, total = 0, self.path.stat().st_size
        with self.path.open("rb") as file:
            for number, line in enumerate(file):
                record = record_of(line)
                end = position + len(line)
                if record is not None:
                    yield position, record
                elif number and end == total and line.count(CHECKSUM) < 2:  # two: a line break between them is gone
                    message = "%s: the last record, in line %d, was never finished and is dropped"
                    logger.warning(message, self.path, number + 1)
                    break
                else:
                    or_go_on = f", or go on from the lines before it (head -n {number})" if number else ""
                    raise UsageError(
                        f"{self.path}: the record in line {number + 1} is damaged, its checksum does not fit; nothing "
                        f"was changed: put a copy back{or_go_on}"
                    )
                position = end
        self._end = position

    def read(self, positions: list[int]) -> Iterator[Record]:
        """The records that begin at these positions, one at a time."""
        with self.path.open("rb") as file:
            for position in positions:
                file.seek(position)
                record = record_of(file.readline())
                assert record is not None, f"{self.path} changed while it was read"
                yield record

    def append(self, record: Record) -> int:
        """Add a record, which is on the disk when this returns; returns where it begins.

        Raises:
            UsageError: the disk is full or refuses; the records before are intact.
        """
        assert self._descriptor is not None, "open for reading only"
        line, position = record_line(record), self._end
        try:
            if os.fstat(self._descriptor).st_size > position:  # a torn record
                os.ftruncate(self._descriptor, position)
            left = memoryview(line)
            while left:
                left = left[os.write(self._descriptor, left) :]
            os.fsync(self._descriptor)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._descriptor, position)
            raise cannot_write(self.path, error) from error
        self._end += len(line)
        return position

    def cut(self, position: int) -> None:
        """Take away the record that begins here and all after it."""
        assert self._descriptor is not None, "open for reading only"
        os.ftruncate(self._descriptor, position)
        os.fsync(self._descriptor)
        self._end = position

    def close(self) -> None:
        """Let others append."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def record_line(record: Record) -> bytes:
    """The line of a record; floats come back to the bit."""
    body = json_text(record).encode("utf-8", "backslashreplace")[:-1]
    return body + CHECKSUM + b'%08x"}\n' % zlib.crc32(body)


def record_of(line: bytes) -> Record | None:
    """The record of a line, None where the checksum does not fit."""
    body, _, checksum = line.rpartition(CHECKSUM)
    if checksum != b'%08x"}\n' % zlib.crc32(body):
        return None
    record: Record = json.loads(body + b"}")
    return record


def _open_locked(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise UsageError(f"another process is training {path.parent}; wait for it, or stop it") from error
    except OSError:
        pass  # this file system has no locks; ``owned`` warned of it
    return descriptor
