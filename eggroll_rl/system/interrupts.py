"""Ctrl-C and SIGTERM end a run in order: a file that is being written is finished first."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self


class Interrupted(KeyboardInterrupt):
    """The process was asked to end by the signal ``number``; ``exit_code`` is what shells expect then."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class StopSignals:
    """A context in which SIGINT and SIGTERM raise ``Interrupted``, at once or at the end of a ``held`` block; a second
    signal kills the process.

    A signal that the process ignores (``nohup``, a background job) stays ignored, and in a thread nothing changes.
    """

    def __enter__(self) -> Self:
        self._held = False
        self._pending: int | None = None
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._receive) for number in numbers}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let a block finish before ``Interrupted`` is raised."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._pending is not None:
            raise Interrupted(self._pending)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        for handled in self._before:
            signal.signal(handled, signal.SIG_DFL)
        self._pending = number
        if not self._held:
            raise Interrupted(number)
