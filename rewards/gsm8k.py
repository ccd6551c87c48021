"""GSM8K: the number that an answer ends on, against the dataset's ``... #### 42`` (arXiv 2110.14168)."""

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from .text import Messages, answer_text, boxed_text, text_of

_NUMBER = re.compile(r"(?<![\w.])(-?)[$€£]?\s?((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,30})(?:\.[0-9]{1,30})?)(?![0-9])")
_MINUS = str.maketrans("−", "-")  # noqa: RUF001
LAST = 2000  # characters of a completion's end in which its last number is sought


def gsm8k(
    prompts: Sequence[str | Messages], completions: Sequence[str | Messages], *, answer: Sequence[Any], **columns: Any
) -> list[float | None]:
    """Reward 1.0 where the completion's number is that of the column ``answer``, else 0.0; None where that has none.

    A completion's number is the last one in its last ``<answer>`` block, else after its last ``####``, else in its last
    ``\\boxed{}``, else in its end. Numbers are compared exactly: ``1,000.0`` is 1000.

    Args:
        answer: a column as GSM8K has it (``... #### 42``), or the number alone, as text or number.
    """
    pairs = zip(completions, answer, strict=True)
    return [_grade(text_of(completion), _gold(str(expected)), marked=False) for completion, expected in pairs]


def gsm8k_marked(
    prompts: Sequence[str | Messages], completions: Sequence[str | Messages], *, answer: Sequence[Any], **columns: Any
) -> list[float | None]:
    """As ``gsm8k``, but a completion that marks no number by ``<answer>``, ``####`` or ``\\boxed{}`` gets 0.0."""
    pairs = zip(completions, answer, strict=True)
    return [_grade(text_of(completion), _gold(str(expected)), marked=True) for completion, expected in pairs]


def last_number(text: str) -> Fraction | None:
    """The last number in a text: thousands may be set off by commas, a currency sign may stand in front."""
    found = _NUMBER.findall(text.translate(_MINUS))
    return Fraction((found[-1][0] + found[-1][1]).replace(",", "")) if found else None


def _gold(answer: str) -> Fraction | None:
    return last_number(answer.rpartition("####")[2])


def _grade(completion: str, gold: Fraction | None, marked: bool) -> float | None:
    if gold is None:
        return None
    place = _marked_text(completion)
    if place is None:
        place = "" if marked else completion
    return float(last_number(place[-LAST:]) == gold)


def _marked_text(completion: str) -> str | None:
    """Where the completion says that its answer is; after ``####`` the first line counts."""
    if (answer := answer_text(completion)) is not None:
        return answer
    if "####" in completion:
        return completion.rpartition("####")[2].strip().partition("\n")[0]
    return boxed_text(completion)
