"""Mathematics with the answer in ``\\boxed{}``, judged by math-verify (the extra ``math``)."""

import logging
import re
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import accumulate
from math import comb, prod
from typing import Any

from .text import Messages, accepted, answer_text, boxed_text, text_of, unwrapped

try:  # at the top, so that the import is no part of a call's time
    from math_verify import LatexExtractionConfig, parse, verify
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"{error}; pip install 'eggroll-rl[math]'", name=error.name) from error

MAX_LENGTH = 400  # characters of an answer
MAX_DEPTH = 6  # brackets in brackets: the time that the grammar takes grows steeply with them
MAX_POWER = 4  # digits of an exponent
MAX_FACTORIAL = 3  # digits under a factorial
MAX_TERMS = 500  # of a power of a sum, multiplied out

_TOWER = re.compile(r"\^\s?\{\s?([0-9]{1,4})\s?\^\s?(?:([0-9])|\{\s?([0-9]{1,2})\s?\})\s?\}")
_GROUP = r"(?:\{(?:[^{}]|\{[^{}]*\})*\}|\([^()]*\))"
_EXPONENT = re.compile(rf"\^\s*((?:{_GROUP}|[0-9]+|\S)(?:\s*\^)?)")
_FACTORIAL = re.compile(rf"({_GROUP}|[0-9]+|.)\s*(!+)", re.DOTALL)
_SUM_POWER = re.compile(r"[)}\]]\s*\^\s*\{?\s*([0-9]{2,4})")
_PLAIN = re.compile(r"\\(?:left|right|frac|dfrac|cdot|times|div|text|mathrm)")
_WORK = re.compile(
    r"\\(?:(?:log|ln|exp|sin|cos|tan)\s?\^\s?\{?[0-9]{3}|int|sum|prod|lim|[dt]?binom\s*(?:\{[^{}]*\}\s*)?\{[^{}]*(?:[0-9]{4}|\^))"
)
_BASE = re.compile(r"[0-9A-F]_\s?\{?\s?([0-9]+)")  # of a positional number, which the grammar passes over
_THOUSANDS = re.compile(r"(?<![0-9.,^_])[0-9]{1,3}(?:(?:\\[,;: ]|~|\u00a0|\u202f| )[0-9]{3})+(?![0-9])")


def boxed_math(
    prompts: Sequence[str | Messages], completions: Sequence[str | Messages], *, answer: Sequence[Any], **columns: Any
) -> list[float | None]:
    """Reward 1.0 where the last ``\\boxed{}`` equals the column ``answer`` as mathematics, else 0.0.

    ``1/2``, ``\\frac{1}{2}`` and ``0.5`` are equal, as are ``x+1`` and ``1+x``, ``1{,}000`` and ``1\\,000``, ``5``,
    ``x=5`` and ``5\\text{ cm}``; ``50\\%`` is 50 and 0.5. Tuples, intervals, sets, matrices and relations
    are compared as such. None where ``answer`` is None or cannot be read. Where there is no box, the last ``<answer>``
    block counts.

    Args:
        answer: a column of LaTeX (``\\frac{1}{2}``), or a whole solution that ends on a ``\\boxed{}``; a list holds
            several accepted answers.

    An answer goes through math-verify's LaTeX grammar, never through Python's: nothing in it is executed. Its limit by
    signals is off, because it cannot interrupt a long computation of an exact power; the reward process can, and its
    timeout (``scoring.timeout``) costs only the answer at fault. So that none is needed, what could be costly is right
    only where it stands so in ``answer``: exponents of more than 4 digits, high towers of powers, factorials of numbers
    of more than 3 digits, high powers of sums with symbols, integrals, sums, products and limits.
    """
    return [
        _best(text_of(completion), [str(one) for one in accepted(expected)])
        for completion, expected in zip(completions, answer, strict=True)
    ]


def _best(completion: str, expected: Sequence[str]) -> float | None:
    grades = [grade for one in expected if (grade := _grade(completion, one)) is not None]
    return max(grades, default=None)


def _grade(completion: str, expected: str) -> float | None:
    solution = boxed_text(expected)
    gold = _plain(expected if solution is None else solution)
    answer = boxed_text(completion)
    if answer is None:
        answer = answer_text(completion) or ""
    if len(answer) > MAX_LENGTH:
        return 0.0 if _is_costly(gold) or _read(gold) else None
    answer = _plain(answer)
    if gold and (_words(answer) == _words(gold) or _is_costly(gold) or _is_costly(answer)):
        return float(_words(answer) == _words(gold))
    if (base := _BASE.search(gold)) and (other := _BASE.search(answer)) and base[1] != other[1]:
        return 0.0
    if not (meaning := _read(gold)):
        return None
    if not answer or _depth(answer) > MAX_DEPTH:
        return 0.0
    return float(verify(list(meaning), list(_read(answer)), timeout_seconds=None))


def _plain(text: str) -> str:
    """``text`` without signs around it and spaces between thousands, the powers in its exponents computed."""
    text = unwrapped(text).strip("$").replace("\\varnothing", "\\emptyset")
    text = _THOUSANDS.sub(lambda number: re.sub("[^0-9]", "", number[0]), text)
    while (simpler := _TOWER.sub(lambda power: f"^{{{int(power[1]) ** int(power[2] or power[3])}}}", text)) != text:
        text = simpler
    return text


def _words(text: str) -> str:
    """``text`` without spaces and the command that sets words."""
    return "".join(re.sub(r"\\(?:text|mathrm|textbf)\s?\{([^{}]*)\}", r"\1", text).split())


def _is_costly(text: str) -> bool:
    """Whether the exact value of ``text`` may take long to compute."""
    if _WORK.search(text) or _terms(text) > MAX_TERMS:
        return True
    if any("^" in power or "!" in power or _digits(power) > MAX_POWER for power in _EXPONENT.findall(text)):
        return True
    return any(
        len(signs) > 1 or "^" in base or "!" in base or base in ")}" or _digits(base) > MAX_FACTORIAL
        for base, signs in _FACTORIAL.findall(text)
    )


def _terms(text: str) -> int:
    """At most how many terms the powers in ``text`` have, multiplied out; 1 without symbols, roots and functions."""
    if not any(map(str.isalpha, _PLAIN.sub("", text))):
        return 1
    signs = max(1, text.count("+") + text.count("-"))
    return prod(comb(int(power) + signs, signs) for power in _SUM_POWER.findall(text))


def _digits(text: str) -> int:
    return sum(map(str.isdigit, text))


def _depth(text: str) -> int:
    """How deep brackets of any kind stand in each other."""
    return max(accumulate((character in "([{") - (character in ")]}") for character in text))


def _read(text: str) -> Sequence[Any]:
    """math-verify's reading of the LaTeX ``text``: expressions and the text itself; empty where it cannot be read."""
    return _reader()(text)


@cache
def _reader() -> Any:
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of the limit that is off
    latex = (LatexExtractionConfig(boxed_match_priority=0),)

    @lru_cache(10_000)
    def read(text: str) -> tuple[Any, ...]:
        return tuple(parse(f"\\boxed{{{text}}}", extraction_config=latex, parsing_timeout=None))

    return read
