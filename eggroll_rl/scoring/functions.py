"""Reward functions: found by import string, inspected, and called on rows of a batch. Imports nothing heavy."""

import difflib
import functools
import importlib
import inspect
import math
import pickle
import traceback
from collections.abc import Callable
from typing import Any

from eggroll_rl.scoring import inputs, modules, values
from eggroll_rl.scoring.inputs import RewardInputs
from eggroll_rl.scoring.modules import NotFound
from eggroll_rl.scoring.values import Log, RewardOutputs, checked, merged


class RewardFunction:
    """A reward function with TRL's signature, given by its import string or itself; call it for rows of a batch.

    Attributes:
        required: names of its parameters without default.
        accepted: names of all its parameters; None: any, it has ``**kwargs``.
        source: the file of its code.
    """

    def __init__(self, spec: str | Callable[..., Any]):
        self.function, self._surroundings = _found(spec) if isinstance(spec, str) else (spec, modules.Surroundings([]))
        parameters = inspect.signature(self.function).parameters.values()
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        self.accepted = None if any(p.kind is p.VAR_KEYWORD for p in parameters) else {p.name for p in named}
        self.required = [p.name for p in named if p.default is p.empty]
        code = inspect.unwrap(_innermost(self.function))
        self.source: str = getattr(getattr(code, "__code__", None), "co_filename", "")
        self.is_async = inspect.iscoroutinefunction(_innermost(self.function))

    def __call__(self, batch: RewardInputs, rows: range, concurrency: int = 1) -> RewardOutputs:
        """The function's values for these rows, and what it logged.

        An async function is called with ``concurrency`` slices of the rows at the same time.

        Raises:
            WrongShape: it returned no list, or one of another length. What the function raises passes through.
        """
        with self._surroundings.here():
            if not self.is_async:
                log = Log(len(rows))
                return RewardOutputs(
                    checked(self.function(**self._arguments(batch, rows, log)), len(rows)), log.metrics, log.extras
                )
            step = max(1, math.ceil(len(rows) / concurrency))
            slices = [rows[first : first + step] for first in range(0, len(rows), step)]
            outputs: list[RewardOutputs] = _event_loop().run(self._concurrently(batch, slices))
            return merged(zip(slices, outputs, strict=True), rows)

    async def _concurrently(self, batch: RewardInputs, slices: list[range]) -> list[RewardOutputs]:
        import asyncio

        logs = [Log(len(rows)) for rows in slices]
        tasks = [
            asyncio.ensure_future(self.function(**self._arguments(batch, rows, log)))
            for rows, log in zip(slices, logs, strict=True)
        ]
        try:
            results = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        return [
            RewardOutputs(checked(result, log.count), log.metrics, log.extras)
            for result, log in zip(results, logs, strict=True)
        ]

    def _arguments(self, batch: RewardInputs, rows: range, log: Log) -> dict[str, Any]:
        own: dict[str, Any] = {
            "trainer_state": pickle.loads(pickle.dumps(batch.state)),
            "log_metric": log.metric,
            "log_extra": log.extra,
        }
        arguments = {name: column(rows) for name, column in batch.columns.items() if self._takes(name)}
        return arguments | {name: value for name, value in own.items() if self._takes(name)}

    def _takes(self, name: str) -> bool:
        return self.accepted is None or name in self.accepted


def resolve(spec: str) -> Callable[..., Any]:
    """The function that ``package.module:function`` or ``path/file.py:function`` names.

    Raises:
        NotFound: no colon, file, module or function of that name. What the module itself raises passes through.
    """
    return _found(spec)[0]


def explain(error: BaseException, source: str = "") -> str:
    """An exception in one line: type, text, and the innermost place in the file ``source``, or in any user's file."""
    text = " ".join(traceback.format_exception_only(error)[-1].split())[:300]
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    own = (__file__, inputs.__file__, modules.__file__, values.__file__, importlib.__file__)
    places = [frame for frame in frames if frame[0] not in own and frame[0][0] != "<"]
    if isinstance(error, SyntaxError) and error.filename:
        places = [(error.filename, error.lineno)]
    places = [place for place in places if place[0] == source] or places
    return text + (f" ({places[-1][0]}:{places[-1][1]})" if places else "")


def _found(spec: str) -> tuple[Callable[..., Any], modules.Surroundings]:
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise NotFound(f"reward {spec!r} has no ':'; write package.module:function or path/file.py:function")
    module, surroundings = modules.load(place)
    if not hasattr(module, name):
        own = {key: value for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
        names = [key for key, value in own.items() if callable(value) and not key.startswith("_")]
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there is {', '.join(names) or 'nothing to call'}"
        raise NotFound(f"reward {spec!r}: no {name!r} in {place}; {hint}")
    function: Callable[..., Any] = getattr(module, name)
    if not callable(function):
        raise NotFound(f"reward {spec!r} is a {type(function).__name__}; name a function")
    return function, surroundings


def _innermost(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function whose code runs: within partials, or the ``__call__`` of an object."""
    while isinstance(function, functools.partial):
        function = function.func
    return function if inspect.isroutine(function) else type(function).__call__


@functools.cache
def _event_loop() -> Any:
    """One event loop for the life of the process, so that clients kept by the user stay usable."""
    import asyncio

    return asyncio.Runner()
