"""A folder has one owner: the process that holds a lock on a file in it, which ends with the process."""

import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from eggroll_rl.system.durable import cannot_write
from eggroll_rl.system.errors import UsageError

LOCK = ".lock"  # name of the locked file; it holds the owner's process id, host and start
ATTEMPTS = 50  # at what another process disturbs only for a moment

logger = logging.getLogger(__name__)


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Make ``folder`` if there is none, and own it during the block; remove it afterwards if it is still empty.

    A lock that a dead process left behind does not count. On a file system without locks this only warns.

    Raises:
        UsageError: another process owns it (the message names its id, host and start), or it cannot be made.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        descriptor = _locked(folder / LOCK)
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)  # while it is locked, so that no other process's file is removed
        os.close(descriptor)
        with suppress(OSError):  # the first folder that is not empty, and those above it, stay
            for place in made:
                place.rmdir()


def _locked(path: Path) -> int:
    """Lock the file at ``path``, write this process's id, host and start into it, and return its descriptor."""
    while True:
        descriptor = _opened(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise UsageError(
                f"{path.parent} belongs to {holder}; wait for its end, stop it, or choose another folder"
            ) from None
        except OSError as error:
            logger.warning("%s: no locks here (%s); let only one process at a time work in it", path.parent, error)
        if _is_at(path, descriptor):  # else its last owner removed it between the two calls
            break
        os.close(descriptor)
    facts = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps(facts).encode())
    return descriptor


def _opened(path: Path) -> int:
    disturbed: OSError = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    for _ in range(ATTEMPTS):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except (FileNotFoundError, FileExistsError) as error:  # another makes the folder, or removes it, at this moment
            disturbed = error
    raise disturbed


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    """Who holds the lock, in words."""
    for _ in range(ATTEMPTS):  # it writes its name just after it has the lock
        with suppress(ValueError):
            facts = json.loads(os.pread(descriptor, 1000, 0))
            return f"process {facts['pid']} on {facts['host']} since {facts['since']}"
        time.sleep(0.01)
    return "another process"
