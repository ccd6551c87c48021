"""Reward functions that a program passes as objects, because no other process could import them.

They are called in this process, one after the other, and nothing can interrupt them: a function that hangs stops the
run, and one that ends its process ends the run. An exception is a failure as in any reward.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from eggroll_rl.config import ScoringConfig
from eggroll_rl.scoring.functions import RewardFunction, explain
from eggroll_rl.scoring.inputs import RewardInputs
from eggroll_rl.scoring.process import UNREACHED, Failure
from eggroll_rl.scoring.values import RewardOutputs, WrongShape

GIVEN = "given:"  # begins the name of such a function in a recipe


class GivenFunctions:
    """A ``RewardBackend`` that calls the functions in this process.

    Attributes:
        required: the required parameters of each function.
        first_seconds: seconds of each function's first call that gave a list of the right length.
    """

    def __init__(self, functions: Sequence[Callable[..., Any]], config: ScoringConfig):
        self._functions = [RewardFunction(function) for function in functions]
        self._config = config
        self._loop = ThreadPoolExecutor(1, "rewards")  # the main thread of a notebook has an event loop of its own
        self.required = [function.required for function in self._functions]
        self.first_seconds: dict[int, float] = {}

    def load(self, batch: RewardInputs) -> None:
        """Set the batch of the calls that follow."""
        self._batch = batch

    def call(self, index: int, rows: range) -> RewardOutputs:
        """The outputs of function ``index`` for some rows of the batch.

        Raises:
            Failure: the function raised, or returned no list of the right length.
        """
        function, began = self._functions[index], time.monotonic()
        try:
            if function.is_async:
                outputs = self._loop.submit(function, self._batch, rows, self._config.concurrency).result()
            else:
                outputs = function(self._batch, rows)
        except WrongShape as error:
            raise Failure("shape", str(error)) from error
        except Exception as error:  # a user's function may raise anything
            raise Failure("exception", explain(error, function.source)) from error
        self.first_seconds.setdefault(index, time.monotonic() - began)
        return outputs

    def search(
        self, index: int, rows: range, whole: Failure, on_failure: Callable[[Failure], None]
    ) -> tuple[list[tuple[range, RewardOutputs]], dict[int, Failure]]:
        """As ``Workers.search``, by halves, until the timeout has passed."""
        deadline = time.monotonic() + self._config.timeout
        done: list[tuple[range, RewardOutputs]] = []
        faults: dict[int, Failure] = {}
        waiting = [(rows, whole)]
        while waiting:
            part, failure = waiting.pop()
            if len(part) == 1:
                faults[part[0]] = failure
                continue
            for half in (part[len(part) // 2 :], part[: len(part) // 2]):
                if time.monotonic() > deadline:
                    faults |= dict.fromkeys(half, UNREACHED)
                    continue
                try:
                    done.append((half, self.call(index, half)))
                except Failure as error:
                    on_failure(error)
                    waiting.append((half, error))
        return sorted(done, key=lambda part: part[0].start), faults

    def close(self) -> None:
        """End the thread of the event loop."""
        self._loop.shutdown()
