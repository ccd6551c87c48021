"""GSM8K: the number that an answer ends on, against the dataset's ``... #### 42`` (arXiv 2110.14168)."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from .quantity import first_number, last_number, stated_number
from .text import Messages, accepted, answer_text, boxed_text, text_of

LAST = 2000  # characters: of a completion's end in which its last number is sought, and of a marked place


def gsm8k(
    prompts: Sequence[str | Messages], completions: Sequence[str | Messages], *, answer: Sequence[Any], **columns: Any
) -> list[float | None]:
    """Reward 1.0 where the completion's number is that of the column ``answer``, else 0.0; None where that has none.

    The last ``<answer>`` block counts where there is one, in it and without it what follows the last ``####`` in its
    line, else the last ``\\boxed{}``. There the first number counts (``#### 18 dollars for 2 weeks``), of an equation
    its right side; two (``18 or 19``) are none. In an ``<answer>`` block of words, and where nothing is marked, the
    last number counts. Numbers are compared exactly: ``1,000.0``, ``1{,}000`` and ``$1000`` are equal, as are ``0.5``,
    ``.5``, ``1/2`` and ``\\frac{1}{2}``; ``50%`` is 50. Digits are ASCII. ``-5`` and ``-$5`` are negative, ``- 5`` is
    an item of a list.

    Args:
        answer: a column as GSM8K has it (``... #### 42``), or the number alone, as text or number; a list holds several
            accepted answers.
    """
    return [
        _grade(text_of(completion), gold, marked=False) for completion, gold in zip(completions, answer, strict=True)
    ]


def gsm8k_marked(
    prompts: Sequence[str | Messages], completions: Sequence[str | Messages], *, answer: Sequence[Any], **columns: Any
) -> list[float | None]:
    """As ``gsm8k``, but a completion that marks no number by ``<answer>``, ``####`` or ``\\boxed{}`` gets 0.0."""
    return [
        _grade(text_of(completion), gold, marked=True) for completion, gold in zip(completions, answer, strict=True)
    ]


def _grade(completion: str, answer: Any, marked: bool) -> float | None:
    golds = {number for gold in accepted(answer) if (number := _number(str(gold), marked=False)) is not None}
    return float(_number(completion, marked) in golds) if golds else None


def _number(text: str, marked: bool) -> Fraction | None:
    """The number that ``text`` states as its answer; if it must be ``marked``, no other."""
    block = answer_text(text)
    place = text if block is None else block
    if "####" in place:
        lines = place.rpartition("####")[2].splitlines()
        return first_number(next((line for line in lines if line.strip()), "")[:LAST])
    if (box := boxed_text(place)) is not None:
        return first_number(box[:LAST])
    if block is not None:
        return stated_number(block[-LAST:])
    return None if marked else last_number(text[-LAST:])
