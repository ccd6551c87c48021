"""Mathematics with the answer in ``\\boxed{}``, judged by math-verify (the extra ``math``)."""

import logging
import re
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import accumulate
from typing import Any

from .text import Messages, answer_text, boxed_text, text_of

try:  # here, so that the import does not count as the time of an answer
    from math_verify import LatexExtractionConfig, parse, verify
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"{error}; pip install 'eggroll-rl[math]'", name=error.name) from error

MAX_LENGTH = 400  # characters of an answer
MAX_DEPTH = 6  # brackets in brackets: the time that the grammar takes grows steeply with them

_HUGE = re.compile(r"\^\s*\{[^{}]*\^|\^\s*[0-9]+\s*\^|\^[\s{]*[0-9]{5}|[0-9]{4}\s*!|[)}!]\s*!")  # towers, factorials


def boxed_math(
    prompts: Sequence[str | Messages], completions: Sequence[str | Messages], *, answer: Sequence[Any], **columns: Any
) -> list[float | None]:
    """Reward 1.0 where the last ``\\boxed{}`` equals the column ``answer`` as mathematics, else 0.0.

    ``1/2``, ``\\frac{1}{2}`` and ``0.5`` are equal, as are ``x+1`` and ``1+x``. None where ``answer`` is None or cannot
    be read. Where there is no box, the last ``<answer>`` block counts.

    Args:
        answer: a column of LaTeX (``\\frac{1}{2}``), or a whole solution that ends on a ``\\boxed{}``.

    An answer goes through math-verify's LaTeX grammar, never through Python's: nothing in it is executed. Its limit by
    signals is off, because it cannot interrupt a long computation of an exact power; the reward process can, and its
    timeout (``scoring.timeout``) costs only the answer at fault. Towers of powers and large factorials are right only
    where they stand so in ``answer``.
    """
    return [
        None if expected is None else _grade(text_of(completion), str(expected))
        for completion, expected in zip(completions, answer, strict=True)
    ]


def _grade(completion: str, expected: str) -> float | None:
    solution = boxed_text(expected)
    gold = (expected if solution is None else solution).strip().strip("$")
    answer = boxed_text(completion)
    if answer is None:
        answer = answer_text(completion) or ""
    answer = answer.strip("$")
    if gold and (_HUGE.search(gold) or _HUGE.search(answer)):
        return float(answer == gold)
    if not (meaning := _read(gold)):
        return None
    if not answer or len(answer) > MAX_LENGTH or _depth(answer) > MAX_DEPTH:
        return 0.0
    return float(verify(list(meaning), list(_read(answer)), timeout_seconds=None))


def _depth(text: str) -> int:
    """How deep brackets of any kind stand in each other."""
    return max(accumulate((character in "([{") - (character in ")]}") for character in text))


def _read(text: str) -> Sequence[Any]:
    """What the LaTeX ``text`` says: expressions, and the text itself; nothing where it says nothing."""
    return _reader()(text)


@cache
def _reader() -> Any:
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of the limit that is off
    latex = (LatexExtractionConfig(boxed_match_priority=0),)

    @lru_cache(10_000)
    def read(text: str) -> tuple[Any, ...]:
        return tuple(parse(f"\\boxed{{{text}}}", extraction_config=latex, parsing_timeout=None))

    return read
