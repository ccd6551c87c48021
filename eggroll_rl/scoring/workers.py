"""Several workers on one batch: call a function on all rows, and if that fails, search for the rows at fault."""

import math
import pickle
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import cached_property

from eggroll_rl.config import ScoringConfig
from eggroll_rl.scoring.inputs import RewardInputs
from eggroll_rl.scoring.process import UNREACHED, Failure, ForkServer, RewardProcess
from eggroll_rl.scoring.values import RewardOutputs
from eggroll_rl.system.cores import usable_cores

SPLIT = 128  # parts of a batch that failed
SHORTEST = 1 / 20  # of the timeout, for the smallest part; at first less, where the function proved to be quick:
QUICK, SLACK = 0.25, 4.0  # seconds, and times what its first call took
MOST_WORKERS = 8  # workers, unless the recipe asks for more


class Workers:
    """A ``RewardBackend`` of worker processes; the first starts at once, the others when they are needed.

    Attributes:
        required: the required parameters of each function.
        first_seconds: seconds of each function's first call that gave a list of the right length.

    Raises:
        Failure: the functions cannot be loaded.
    """

    def __init__(self, rewards: Sequence[str], config: ScoringConfig):
        self.timeout = config.timeout
        self.first_seconds: dict[int, float] = {}
        self._fork_server = ForkServer(rewards, config)
        count = config.workers or min(MOST_WORKERS, usable_cores())
        self._workers = [RewardProcess(self._fork_server, len(rewards)) for _ in range(count)]
        try:
            self.required = self._workers[0].start()
        except Failure:
            self.close()
            raise

    def load(self, batch: RewardInputs) -> None:
        """Set the batch of the calls that follow."""
        message = pickle.dumps({"batch": batch}, pickle.HIGHEST_PROTOCOL)
        for worker in self._workers:
            worker.load(message)

    def call(self, index: int, rows: range) -> RewardOutputs:
        """The outputs of function ``index`` for some rows of the batch.

        Raises:
            Failure: the function failed, or gave no reply within the timeout.
        """
        return self._call(self._workers[0], index, rows, self.timeout)

    def search(
        self, index: int, rows: range, whole: Failure, on_failure: Callable[[Failure], None]
    ) -> tuple[list[tuple[range, RewardOutputs]], dict[int, Failure]]:
        """Find the rows at fault after a call failed: the outputs of parts, in order, and the failures by row.

        All workers try parts, down to single rows, until the timeout has passed. The parts do not depend on the number
        of workers.

        Args:
            whole: how the call on all rows failed.
            on_failure: called with each further failure; what it raises ends the search.
        """
        if len(rows) == 1:
            return [], {rows[0]: whole}
        done: list[tuple[range, RewardOutputs]] = []
        faults: dict[int, Failure] = {}
        waiting, idle = deque(self._parts(index, rows, len(rows))), list(self._workers)
        running: dict[Future[RewardOutputs], tuple[RewardProcess, range, float]] = {}
        deadline = time.monotonic() + self.timeout
        try:
            while waiting or running:
                while waiting and idle:
                    part, limit = waiting.popleft()
                    left = deadline - time.monotonic()
                    if left > 0:
                        worker = idle.pop()
                        future = self._threads.submit(self._call, worker, index, part, min(left, limit))
                        running[future] = worker, part, limit
                    else:
                        faults = dict.fromkeys(part, UNREACHED) | faults
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    worker, part, limit = running.pop(future)
                    idle.append(worker)
                    failure = future.exception()
                    if failure is None:
                        done.append((part, future.result()))
                        faults.pop(part[0], None)
                    elif isinstance(failure, Failure):
                        on_failure(failure)
                        faults |= {part[0]: failure} if len(part) == 1 else {}
                        waiting.extend(self._again(index, part, limit, failure, len(rows)))
                    else:
                        raise failure
        finally:
            for worker, _, _ in running.values():
                worker.interrupt()
            wait(running)
        return sorted(done, key=lambda part: part[0].start), faults

    def close(self) -> None:
        """End all processes."""
        if "_threads" in vars(self):
            self._threads.shutdown()
        for worker in self._workers:
            worker.kill()
        self._fork_server.close()

    def _call(self, worker: RewardProcess, index: int, rows: range, seconds: float) -> RewardOutputs:
        began = time.monotonic()
        answer = worker.call(index, rows, seconds)
        self.first_seconds.setdefault(index, time.monotonic() - began)
        return answer

    def _parts(self, index: int, rows: range, count: int) -> list[tuple[range, float]]:
        """Divide rows that failed together into parts, each with its seconds: its share of the timeout among ``count``
        rows, but not less than any call needs."""
        step = math.ceil(len(rows) / SPLIT)
        least = min(max(QUICK, SLACK * self.first_seconds.get(index, 0.0)), SHORTEST * self.timeout)
        parts = [rows[first : first + step] for first in range(0, len(rows), step)]
        return [(part, max(len(part) / count * self.timeout, least)) for part in parts]

    def _again(self, index: int, rows: range, limit: float, failure: Failure, count: int) -> list[tuple[range, float]]:
        """The parts to try after these rows failed, each with its seconds; none once a single row has had its time."""
        if len(rows) > 1:
            return self._parts(index, rows, count)
        longest = SHORTEST * self.timeout
        return [(rows, longest)] if failure.kind == "timeout" and limit < longest else []

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(len(self._workers), "rewards")
