"""Text of completions, ``<think>`` and ``<answer>`` blocks, and the rewards that need nothing else.

Every search is a linear pass of ``str.find``: a completion of a megabyte costs about a millisecond.
"""

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from .quantity import only_number

Messages = Sequence[Mapping[str, Any]]

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_WRAPPERS = ("**", "__", "`", "$", '"')
LONGER = 1000  # characters by which an answer may be longer than the expected one


def text_of(value: str | Messages) -> str:
    """A prompt or completion as text: itself, or the content of its last message (``""`` where there is none)."""
    if isinstance(value, str):
        return value
    return (value[-1].get("content") or "") if value else ""


def answer_text(completion: str | Messages) -> str | None:
    """What stands in the last ``<answer>...</answer>``, stripped; None without such a block."""
    text = text_of(completion)
    last = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, last) if last >= 0 else -1
    if start < 0:
        return None
    return text[start + len("<answer>") : text.find("</answer>", start)].strip()


def boxed_text(text: str) -> str | None:
    """What stands in the last ``\\boxed{...}`` or ``\\fbox{...}``, braces matched, escaped ones apart; None without."""
    start, depth = -1, 1
    for box in _BOX.finditer(text):
        start = box.end()
    for brace in _BRACE.finditer(text, start) if start >= 0 else ():
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[start : brace.start()].strip()
    return None


def accepted(expected: Any) -> list[Any]:
    """The accepted answers that a value of a column holds: itself or its items, without None and NaN."""
    several = isinstance(expected, Iterable) and not isinstance(expected, str | Mapping)
    return [one for one in (expected if several else [expected]) if not _is_missing(one)]


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def unwrapped(text: str) -> str:
    """``text`` without the signs of emphasis, code and mathematics around it, spaces, and a stop after it."""
    for _ in _WRAPPERS:
        text = text.strip().removesuffix(".").rstrip()
        for sign in _WRAPPERS:
            if len(text) > 2 * len(sign) and text.startswith(sign) and text.endswith(sign):
                text = text[len(sign) : -len(sign)]
    return text.strip()


def think_format(
    prompts: Sequence[str | Messages], completions: Sequence[str | Messages], **columns: Any
) -> list[float]:
    """Reward the format of "Evolution Strategies at Scale" (arXiv 2509.24372).

    1.0 for exactly ``<think>...</think>\\n<answer>...</answer>``; else 0.1 for a think and 0.5 for an answer block.
    A prompt that ends with ``<think>`` has opened the block already.
    """
    opened = ["<think>" if text_of(prompt).rstrip().endswith("<think>") else "" for prompt in prompts]
    return [_format_score(start + text_of(completion)) for start, completion in zip(opened, completions, strict=True)]


def exact_match(
    prompts: Sequence[str | Messages], completions: Sequence[str | Messages], *, answer: Sequence[Any], **columns: Any
) -> list[float | None]:
    """Reward 1.0 where the answer equals the column ``answer``, else 0.0; None where that is None.

    The answer is the last ``<answer>`` block, or the whole completion where there is none. White space, signs of
    emphasis, code or mathematics around it, and a stop after it do not matter. Where the column has a number, the
    answer is a number of the same value: ``42``, ``42.0`` and ``1,000`` for 1000.0. A list in ``answer`` holds several
    accepted answers; NaN counts as None.
    """
    return [
        float(any(_is_same(_answer_or_all(completion), gold) for gold in golds))
        if (golds := accepted(expected))
        else None
        for completion, expected in zip(completions, answer, strict=True)
    ]


def _format_score(text: str) -> float:
    text = text.removesuffix("\n")
    if text.startswith("<think>") and text.endswith("</answer>"):
        seam = text.find("</think>\n<answer>", len("<think>"), len(text) - len("</answer>"))
        if seam >= 0:
            return 1.0
    return 0.1 * _has_block(text, "think") + 0.5 * _has_block(text, "answer")


def _has_block(text: str, tag: str) -> bool:
    start = text.find(f"<{tag}>")
    return start >= 0 and text.find(f"</{tag}>", start) >= 0


def _answer_or_all(completion: str | Messages) -> str:
    answer = answer_text(completion)
    return text_of(completion) if answer is None else answer


def _is_same(text: str, gold: Any) -> bool:
    if len(text) > len(str(gold)) + LONGER:
        return False
    if isinstance(gold, int | float) and not isinstance(gold, bool):
        value = only_number(unwrapped(text))
        return value is not None and value == Fraction(str(gold))
    texts = (unicodedata.normalize("NFC", one) for one in (text, str(gold)))
    given, wanted = ([one.split(), unwrapped(one).split()] for one in texts)
    return given[0] == wanted[0] or given[1] == wanted[1]
