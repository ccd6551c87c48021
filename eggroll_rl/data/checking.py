"""One pass over all rows before any is asked: at once where that takes seconds, else on in the background."""

import logging
import time
from collections.abc import Callable, Iterator
from threading import Thread

from eggroll_rl.system.errors import UsageError

logger = logging.getLogger(__name__)

PATIENCE = 10.0  # seconds for which a run waits for the pass before it begins


class Pass:
    """A walk over rows that raises at the first that is at fault.

    Args:
        steps: does one row at a time, and raises ``UsageError`` naming it.
        apart: called once before the walk goes on in a thread of its own: what it needs there is its own from then on.

    Raises:
        UsageError: a row that was reached within ``PATIENCE`` seconds is at fault.
    """

    def __init__(self, steps: Iterator[None], apart: Callable[[], None]):
        self._error: UsageError | None = None
        self._thread: Thread | None = None
        until = time.monotonic() + PATIENCE
        self.is_over = True
        for _ in steps:
            if time.monotonic() > until:
                self.is_over = False
                break
        if not self.is_over:
            logger.info("the data are many: they are checked on while the run goes on")
            apart()
            self._thread = Thread(target=self._finish, args=(steps,), daemon=True, name="eggroll-rl: data")
            self._thread.start()

    def _finish(self, steps: Iterator[None]) -> None:
        try:
            for _ in steps:
                pass
        except UsageError as error:
            self._error = error
        else:
            self.is_over = True

    def wait(self) -> None:
        """Return when the walk is over, or has found a row at fault."""
        if self._thread is not None:
            self._thread.join()

    def refuse_fault(self) -> None:
        """Raise what was found meanwhile.

        Raises:
            UsageError: a row is at fault, and which.
        """
        if self._error is not None:
            raise self._error
