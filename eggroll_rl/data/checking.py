"""Check every row of a data set before it is asked: at the start for some seconds, then in the background."""

import logging
import time
from collections.abc import Callable, Iterator
from threading import Thread

from eggroll_rl.system.errors import UsageError

logger = logging.getLogger(__name__)

PATIENCE = 10.0  # seconds for which a run waits for the pass before it begins


class RowCheck:
    """Runs ``rows``, a generator that checks one row at each step, for ``PATIENCE`` seconds and then on in a thread.

    Args:
        rows: raises ``UsageError`` naming the row where one is at fault.
        before_thread: called once before the thread starts, to give it copies of what threads cannot share.

    Raises:
        UsageError: a row that was reached within ``PATIENCE`` seconds is at fault.
    """

    def __init__(self, rows: Iterator[None], before_thread: Callable[[], None]):
        self._error: UsageError | None = None
        self._thread: Thread | None = None
        until = time.monotonic() + PATIENCE
        self.is_over = True
        for _ in rows:
            if time.monotonic() > until:
                self.is_over = False
                break
        if not self.is_over:
            logger.info("the data are many: they are checked on while the run goes on")
            before_thread()
            self._thread = Thread(target=self._finish, args=(rows,), daemon=True, name="eggroll-rl: data")
            self._thread.start()

    def _finish(self, rows: Iterator[None]) -> None:
        try:
            for _ in rows:
                pass
        except UsageError as error:
            self._error = error
        else:
            self.is_over = True

    def wait(self) -> None:
        """Return when all rows are checked, or one is found at fault."""
        if self._thread is not None:
            self._thread.join()

    def refuse_fault(self) -> None:
        """Raise UsageError if a row was found at fault by now, naming it."""
        if self._error is not None:
            raise self._error
