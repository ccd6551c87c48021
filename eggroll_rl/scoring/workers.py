"""Several workers on one batch: a call on all of its rows, and where that fails the search for the rows at fault."""

import math
import os
import pickle
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import cached_property

from eggroll_rl.config import ScoringConfig
from eggroll_rl.scoring.inputs import RewardInputs
from eggroll_rl.scoring.process import UNREACHED, Failure, Nursery, RewardProcess
from eggroll_rl.scoring.values import Answer

SPLIT = 128  # parts of a batch that failed
SHORTEST = 1 / 20  # of the timeout, for the smallest part; at first less, where the function proved to be quick:
QUICK, SLACK = 0.25, 4.0  # seconds, and times what its first call took
MOST_WORKERS = 8  # workers, unless the recipe asks for more


class Workers:
    """Reward workers that start when they are needed, the first one at once.

    Attributes:
        required: the required parameters of each function.
        first: seconds of each function's first call that gave a list of the right length.

    Raises:
        Failure: the functions cannot be loaded.
    """

    def __init__(self, rewards: Sequence[str], config: ScoringConfig):
        self.timeout = config.timeout
        self.first: dict[int, float] = {}
        self._nursery = Nursery(rewards, config)
        count = config.workers or min(MOST_WORKERS, len(os.sched_getaffinity(0)))
        self._workers = [RewardProcess(self._nursery, len(rewards)) for _ in range(count)]
        try:
            self.required = self._workers[0].start()
        except Failure:
            self.close()
            raise

    def load(self, batch: RewardInputs) -> None:
        """Make a batch that of the calls to come."""
        message = pickle.dumps({"batch": batch}, pickle.HIGHEST_PROTOCOL)
        for worker in self._workers:
            worker.load(message)

    def call(self, index: int, rows: range) -> Answer:
        """What function ``index`` gives for all rows of the batch, within the timeout.

        Raises:
            Failure: it gave nothing.
        """
        return self._call(self._workers[0], index, rows, self.timeout)

    def search(
        self, index: int, rows: range, whole: Failure, failed: Callable[[Failure], None]
    ) -> tuple[list[tuple[range, Answer]], dict[int, Failure]]:
        """What a function gives for parts of a batch on which it failed, in their order, and the rows at fault.

        All workers try parts, down to single rows, until the timeout has passed. The parts do not depend on the number
        of workers.

        Args:
            whole: how the call on all rows failed.
            failed: is told of each further failure, and may raise.
        """
        if len(rows) == 1:
            return [], {rows[0]: whole}
        done: list[tuple[range, Answer]] = []
        faults: dict[int, Failure] = {}
        waiting, idle = deque(self._parts(index, rows, len(rows))), list(self._workers)
        running: dict[Future[Answer], tuple[RewardProcess, range, float]] = {}
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
                        failed(failure)
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
        self._nursery.close()

    def _call(self, worker: RewardProcess, index: int, rows: range, seconds: float) -> Answer:
        began = time.monotonic()
        answer = worker.call(index, rows, seconds)
        self.first.setdefault(index, time.monotonic() - began)
        return answer

    def _parts(self, index: int, rows: range, count: int) -> list[tuple[range, float]]:
        """The parts of some rows that failed together, each with the seconds that it gets: its share of the timeout
        among ``count`` rows, or more where that is too little for any call."""
        step = math.ceil(len(rows) / SPLIT)
        least = min(max(QUICK, SLACK * self.first.get(index, 0.0)), SHORTEST * self.timeout)
        parts = [rows[first : first + step] for first in range(0, len(rows), step)]
        return [(part, max(len(part) / count * self.timeout, least)) for part in parts]

    def _again(self, index: int, rows: range, limit: float, failure: Failure, count: int) -> list[tuple[range, float]]:
        """What is to be tried after some rows failed, each with its seconds."""
        if len(rows) > 1:
            return self._parts(index, rows, count)
        longest = SHORTEST * self.timeout
        return [(rows, longest)] if failure.kind == "timeout" and limit < longest else []

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(len(self._workers), "rewards")
