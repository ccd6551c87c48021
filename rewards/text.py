"""Text of completions, ``<think>`` and ``<answer>`` blocks, and the rewards that need nothing else.

Every search is a linear pass of ``str.find``: a completion of a megabyte costs about a millisecond.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Messages = Sequence[Mapping[str, Any]]


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
    """What stands in the last ``\\boxed{...}``, braces matched; None where there is none, or it is not closed."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    start, depth = start + len("\\boxed{"), 1
    for index in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return text[start:index].strip()
    return None


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
    """Reward 1.0 where the answer equals the column ``answer`` up to whitespace, else 0.0; None where that is None.

    The answer is the last ``<answer>`` block, or the whole completion where there is none.
    """
    return [
        None if expected is None else float(_same_words(_answer_or_all(completion), str(expected)))
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


def _same_words(text: str, expected: str) -> bool:
    words = expected.split()
    return text.strip().split(None, len(words)) == words
