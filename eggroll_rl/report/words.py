"""Numbers and texts as a reader meets them on a page."""

from typing import Any

from eggroll_rl.es.rollout import Prompt

LONGEST = 6000  # characters of one text on a page


def count(value: float) -> str:
    return f"{value:,.0f}"


def share(value: float) -> str:
    return f"{value:.1%}"


def interval(low: float, high: float) -> str:
    return f"{100 * low:.1f}\u2013{share(high)}"


def duration(seconds: float) -> str:
    """``12 s``, ``3.4 min``, ``5.6 h``."""
    if seconds < 100:
        return f"{seconds:.3g}\u00a0s"
    return f"{seconds / 60:.1f}\u00a0min" if seconds < 6000 else f"{seconds / 3600:.1f}\u00a0h"


def plural(number: float, noun: str) -> str:
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def text(prompt: Prompt) -> str:
    """A prompt or an answer; of chat messages each with its role, and of a very long text the beginning."""
    words = prompt if isinstance(prompt, str) else "\n\n".join(f"{m['role']}: {m['content']}" for m in prompt)
    rest = len(words) - LONGEST
    return words.strip() or "(nothing)" if rest <= 0 else f"{words[:LONGEST].strip()} … ({rest:,} characters more)"


def setting(value: Any) -> str:
    """A value of a recipe, short."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {setting(part)}" for key, part in value.items() if part is not None)
    if isinstance(value, list | tuple):
        return ", ".join(map(setting, value)) or "none"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
