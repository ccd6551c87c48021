"""Countdown: an expression over all the given numbers must reach the target.

Graded by a parser of its own with exact fractions: nothing is evaluated as Python, and the limits below keep any
answer, however hostile, under a millisecond.
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from .text import Messages, accepted, answer_text, think_format, unwrapped

MAX_LENGTH = 200  # characters of an answer
MAX_DEPTH = 20  # nested parentheses
TOLERANCE = Fraction(1, 100_000)  # for targets given as decimals, as published

Target = int | float | str | Fraction

_TOKEN = re.compile(r"0|[1-9][0-9]{0,11}|\S")
_CONSTANT = re.compile(r"-?[0-9]{1,12}(?:\.[0-9]{1,12}|/[1-9][0-9]{0,11})?")
_TYPOGRAPHY = str.maketrans("×÷−⋅·∗", "*/-***")  # noqa: RUF001
_LATEX = {"\\times": "*", "\\cdot": "*", "\\div": "/", "\\left": "", "\\right": "", "\\(": "", "\\)": ""}
_FRACTION = re.compile(r"\\[dt]?frac\s?\{([^{}]*)\}\s?\{([^{}]*)\}")


def countdown(
    prompts: Sequence[str | Messages],
    completions: Sequence[str | Messages],
    *,
    numbers: Sequence[Sequence[int] | str],
    target: Sequence[Target],
    **columns: Any,
) -> list[float | None]:
    """Reward 1.0 where the last ``<answer>`` block solves the problem (see `is_solution`), else 0.0.

    None where the problem is missing (numbers or target None, or NaN). The signs of emphasis, code and mathematics
    around the expression and a stop after it are ignored; words are not: ``Answer: 3*8`` is 0.0, as where TinyZero and
    "Evolution Strategies at Scale" take digits, operators and brackets alone.

    Args:
        numbers: a column, the numbers of each problem; whole floats, as pandas makes them, are integers. A file of
            comma-separated values has them as text, ``[3, 4]``.
        target: a column: an int, a string such as ``"7/2"``, or a float.
    """
    return [
        float((answer := answer_text(completion)) is not None and is_solution(unwrapped(answer), given, goal))
        if accepted(given) and accepted(goal)
        else None
        for completion, given, goal in zip(completions, numbers, target, strict=True)
    ]


def countdown_with_format(
    prompts: Sequence[str | Messages],
    completions: Sequence[str | Messages],
    *,
    numbers: Sequence[Sequence[int] | str],
    target: Sequence[Target],
    **columns: Any,
) -> list[float | None]:
    """``countdown + 0.1 * think_format``, the reward of "Evolution Strategies at Scale" (arXiv 2509.24372)."""
    answers = countdown(prompts, completions, numbers=numbers, target=target)
    return [
        None if answer is None else answer + 0.1 * shape
        for answer, shape in zip(answers, think_format(prompts, completions), strict=True)
    ]


def is_solution(expression: str, numbers: Sequence[int] | str, target: Target) -> bool:
    """Whether ``expression`` uses every number exactly once and has the value ``target``.

    A trailing ``= target`` is allowed, as are unary minus, square brackets and the operators ``×``, ``÷``, ``·`` and
    ``−``, also as LaTeX's ``\\times``, ``\\div`` and ``\\cdot``. There are no powers.
    Values are compared exactly, to a decimal target that is not whole (``3.33``, ``"3.33"``) within 1e-5.

    Raises:
        ValueError: where ``numbers`` or ``target``, which come from the dataset, are no numbers.
    """  # noqa: RUF002
    if len(expression) > MAX_LENGTH:
        return False
    left, equals, right = expression.partition("=")
    try:
        parser = _Parser(left)
        value = parser.parse()
    except ValueError:
        return False
    given = re.findall(r"-?[0-9]+", numbers) if isinstance(numbers, str) else numbers
    if sorted(parser.numbers) != sorted(map(_exact, given)) or not _reaches(value, target):
        return False
    constant = _CONSTANT.fullmatch(_plain(right).strip().replace(",", ""))
    return not equals or (constant is not None and _reaches(Fraction(constant[0]), target))


def evaluate_expression(text: str) -> Fraction:
    """The exact value of an expression of integers, ``+ - * /``, parentheses and unary minus.

    Raises:
        ValueError: for anything else, division by zero, more than 200 characters or 20 nested parentheses, and integers
            of more than 12 digits or with leading zeros.
    """
    return _Parser(text).parse()


def _exact(number: Target) -> Fraction:
    return Fraction(str(number))


def _plain(text: str) -> str:
    text = _FRACTION.sub(r"((\1)/(\2))", text)
    for command, sign in _LATEX.items():
        text = text.replace(command, sign)
    return text.translate(_TYPOGRAPHY)


def _reaches(value: Fraction, target: Target) -> bool:
    goal = _exact(target)
    if goal.denominator == 1 or "/" in str(target):
        return value == goal
    return abs(value - goal) < TOLERANCE


class _Parser:
    """Recursive descent: sum -> product -> factor -> number | ( sum ). ``numbers`` collects the literals."""

    def __init__(self, text: str):
        if len(text) > MAX_LENGTH:
            raise ValueError(f"{len(text)} characters; at most {MAX_LENGTH} are read")
        self.tokens: list[str] = _TOKEN.findall(_plain(text))[::-1]
        self.numbers: list[int] = []
        self.depth = 0

    def parse(self) -> Fraction:
        value = self.sum()
        if self.tokens:
            raise ValueError(f"unexpected {self.tokens[-1]!r}")
        return Fraction(value)

    def take(self, operators: str) -> str:
        """The next token, taken, if it is one of ``operators``; else nothing."""
        return self.tokens.pop() if self.tokens and self.tokens[-1] in operators else ""

    def sum(self) -> int | Fraction:
        value = self.product()
        while operator := self.take("+-"):
            value = value + self.product() if operator == "+" else value - self.product()
        return value

    def product(self) -> int | Fraction:
        value = self.factor()
        while operator := self.take("*/"):
            factor = self.factor()
            if operator == "/" and factor == 0:
                raise ValueError("division by zero")
            value = value * factor if operator == "*" else Fraction(value) / factor
        return value

    def factor(self) -> int | Fraction:
        sign = 1
        while self.take("-"):
            sign = -sign
        return sign * (self.group(opening) if (opening := self.take("([")) else self.number())

    def group(self, opening: str) -> int | Fraction:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ValueError(f"parentheses nested more than {MAX_DEPTH} deep")
        value = self.sum()
        if not self.take(")" if opening == "(" else "]"):
            raise ValueError("a parenthesis is not closed")
        self.depth -= 1
        return value

    def number(self) -> int:
        token = self.tokens.pop() if self.tokens else "end"
        if not (token.isascii() and token.isdigit()):
            raise ValueError(f"unexpected {token!r}")
        self.numbers.append(int(token))
        return self.numbers[-1]
