"""A guard ends everything that a worker started: it adopts orphans, also those in sessions of their own.

Linux gives orphans to the nearest ancestor that asked for them (``PR_SET_CHILD_SUBREAPER``), so a guard that kills its
children until it has none leaves nothing behind. Elsewhere it ends the worker's process group.
"""

import ctypes
import os
import select
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of linux/prctl.h
TICK_MS = 500  # milliseconds between looks at the parent


class Watch:
    """Waits for one of: a child died, the other side of ``channel`` hung up, or (``POLLIN`` in ``events``) wrote."""

    def __init__(self, channel: socket.socket, events: int = 0):
        self._parent = os.getppid()
        self._bell, bell = socket.socketpair()
        self._ring = bell  # kept open
        for side in (self._bell, bell):
            side.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(bell.fileno(), warn_on_full_buffer=False)
        self._channel, self._poll = channel.fileno(), select.poll()
        self._poll.register(channel, events)
        self._poll.register(self._bell, select.POLLIN)

    def wait(self) -> int | None:
        """Wait, then return the channel's poll events (0: none); None where the parent process is gone."""
        events = dict(self._poll.poll(TICK_MS))
        if self._bell.fileno() in events:
            self._bell.recv(4096)
        return events.get(self._channel, 0) if os.getppid() == self._parent else None


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)


def forget_watch() -> None:
    """In a forked process, undo the signal handlers that a ``Watch`` of the parent set."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def reap() -> dict[int, int]:
    """Exit codes by process id of the children that have died; minus the signal's number where a signal ended one."""
    dead = {}
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            dead[found[0]] = os.waitstatus_to_exitcode(found[1])
    return dead


def children() -> set[int]:
    """Ids of this process's children, zombies included (Linux)."""
    mine, found = str(os.getpid()), set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if stat.read_bytes().rpartition(b")")[2].split()[1].decode() == mine:
                found.add(int(stat.parent.name))
    return found


def end_children(spared: frozenset[int] | set[int] = frozenset()) -> dict[int, int]:
    """Kill children, and the orphans that come in their place, until none is left; returns their exit codes."""
    dead = {}
    while strangers := children() - spared:
        for pid in strangers:
            os.kill(pid, signal.SIGKILL)
        for pid in strangers:
            dead[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return dead


def guard(worker: int, channel: socket.socket, exit_code: int) -> None:
    """Wait until the child ``worker`` dies or the other side of its channel hangs up, and kill what is left of it.

    Then write the worker's exit code to the descriptor ``exit_code``, as text.
    """
    watch = Watch(channel)
    dead = reap()
    while worker not in dead and watch.wait() == 0:
        dead |= reap()
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(worker, signal.SIGKILL)
    dead |= end_children()
    with suppress(OSError):  # the trainer may be gone
        os.write(exit_code, str(dead.get(worker, -signal.SIGKILL)).encode())
