"""Reward functions by import string: found, inspected, called on rows of a batch. Light: the reward process imports it.

N members, P prompts. Row i of a batch is completion i of the N*P, the answer to prompt ``i % P``.
"""

import difflib
import hashlib
import importlib
import inspect
import math
import reprlib
import sys
import traceback
from collections.abc import Callable
from functools import cache
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple


class NotFound(LookupError):
    """A reward's import string leads nowhere; the message names it and the remedy."""


class WrongShape(ValueError):
    """A reward function did not return one value for each completion."""


class Batch(NamedTuple):
    """N*P completions, member by member, with the P prompts and the dataset columns of those prompts."""

    prompts: list[Any]
    completions: list[Any]
    columns: dict[str, list[Any]]


class RewardFunction:
    """A function with TRL's signature: which parameters it takes, and its values for some rows of a batch.

    ``required`` lists the parameters without default, ``source`` is the file of its code.
    """

    def __init__(self, spec: str):
        self.function = resolve(spec)
        parameters = inspect.signature(self.function).parameters.values()
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        self.accepted = None if any(p.kind is p.VAR_KEYWORD for p in parameters) else {p.name for p in named}
        self.required = [p.name for p in named if p.default is p.empty]
        self.source: str = getattr(getattr(inspect.unwrap(self.function), "__code__", None), "co_filename", "")
        self.is_async = any(map(inspect.iscoroutinefunction, (self.function, type(self.function).__call__)))

    def __call__(self, batch: Batch, rows: range, concurrency: int = 1) -> list[float | str | None]:
        """One value a row: a float, None where the reward does not apply, or a text saying what is wrong with it.

        An async function is called with ``concurrency`` slices of the rows at the same time.

        Raises:
            WrongShape: it returned no list, or one of another length.
        """
        if not self.is_async:
            return _checked(self.function(**self._arguments(batch, rows)), len(rows))
        step = max(1, math.ceil(len(rows) / concurrency))
        slices = [rows[first : first + step] for first in range(0, len(rows), step)]
        values: list[float | str | None] = _event_loop().run(self._concurrently(batch, slices))
        return values

    async def _concurrently(self, batch: Batch, slices: list[range]) -> list[float | str | None]:
        import asyncio

        tasks = [asyncio.ensure_future(self.function(**self._arguments(batch, rows))) for rows in slices]
        try:
            answers = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        return [value for rows, answer in zip(slices, answers, strict=True) for value in _checked(answer, len(rows))]

    def _arguments(self, batch: Batch, rows: range) -> dict[str, list[Any]]:
        P = len(batch.prompts)
        columns = {**batch.columns, "prompts": batch.prompts}
        arguments = {name: [column[row % P] for row in rows] for name, column in columns.items()}
        arguments["completions"] = batch.completions[rows.start : rows.stop]
        return {name: values for name, values in arguments.items() if self.accepted is None or name in self.accepted}


def resolve(spec: str) -> Callable[..., Any]:
    """The function that ``package.module:function`` or ``path/file.py:function`` names.

    Raises:
        NotFound: no colon, file, module or function of that name. What the module itself raises passes through.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise NotFound(f"reward {spec!r} has no ':'; write package.module:function or path/file.py:function")
    module = _load_file(place) if place.endswith(".py") or "/" in place else _load_module(place)
    if not hasattr(module, name):
        own = {key: value for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
        names = [key for key, value in own.items() if callable(value) and not key.startswith("_")]
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there is {', '.join(names) or 'nothing to call'}"
        raise NotFound(f"reward {spec!r}: no {name!r} in {place}; {hint}")
    function: Callable[..., Any] = getattr(module, name)
    if not callable(function):
        raise NotFound(f"reward {spec!r} is a {type(function).__name__}; name a function")
    return function


def explain(error: BaseException, source: str = "") -> str:
    """An exception in one line: type, text, and the innermost place in the file ``source``, or in any user's file."""
    text = " ".join(traceback.format_exception_only(error)[-1].split())[:300]
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    places = [frame for frame in frames if frame[0] not in (__file__, importlib.__file__) and frame[0][0] != "<"]
    if isinstance(error, SyntaxError) and error.filename:
        places = [(error.filename, error.lineno)]
    places = [place for place in places if place[0] == source] or places
    return text + (f" ({places[-1][0]}:{places[-1][1]})" if places else "")


def _load_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if f"{name}.".startswith(f"{error.name}."):
            raise NotFound(
                f"reward module {name!r}: there is no {error.name!r}; a file is path/file.py:function"
            ) from error
        raise


def _load_file(place: str) -> ModuleType:
    """The module in a file, under a name that cannot collide with an installed one."""
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        raise NotFound(f"reward file {place!r} does not exist (looked in {Path.cwd()})")
    name = f"_eggroll_reward_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    if name not in sys.modules:
        module = sys.modules[name] = ModuleType(name)
        module.__file__ = str(path)
        try:
            SourceFileLoader(name, str(path)).exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _checked(result: Any, count: int) -> list[float | str | None]:
    if hasattr(result, "tolist"):  # numpy, torch
        result = result.tolist()
    if not isinstance(result, list | tuple):
        raise WrongShape(f"returned {reprlib.repr(result)}, not a list of {count} numbers")
    if len(result) != count:
        raise WrongShape(f"returned {len(result)} values for {count} completions")
    return [_number(value) for value in result]


def _number(value: Any) -> float | str | None:
    if value is None:
        return None
    if isinstance(value, str) or not hasattr(value, "__float__"):
        return f"returned {reprlib.repr(value)}, not a number"
    try:
        number = float(value)
    except (OverflowError, TypeError, ValueError) as error:
        return f"returned a {type(value).__name__} that is no number: {error}"
    return number if math.isfinite(number) else f"returned {number}, not a finite number"


@cache
def _event_loop() -> Any:
    """One event loop for the life of the process, so that clients kept by the user stay usable."""
    import asyncio

    return asyncio.Runner()
