"""The held-out curve of a run as lines of text, and one held-out answer before and after training."""

from collections.abc import Mapping, Sequence
from typing import Any

from eggroll_rl.system.terminal import harmless

LEVELS = " ▁▂▃▄▅▆▇█"
ROWS = 4
LONGEST = 160  # characters of an answer that are shown
MEASURES = {"accuracy": ("held-out accuracy", "{:.1%}"), "bits_per_byte": ("held-out bits per byte", "{:.3f}")}


def curve_lines(evaluations: Mapping[int, Mapping[str, Any]], width: int) -> list[str]:
    """Lines of a bar chart of the last ``width`` evaluations at most, given by generation; none where there are fewer
    than two."""
    key = next((key for key in MEASURES if all(key in record for record in evaluations.values())), None)
    if key is None or len(evaluations) < 2:
        return []
    title, form = MEASURES[key]
    generations = sorted(evaluations)[-width:]
    values = [float(evaluations[generation][key]) for generation in generations]
    low, high = min(values), max(values)
    steps = ROWS * (len(LEVELS) - 1)
    heights = [1 + round((value - low) / (high - low or 1.0) * (steps - 1)) for value in values]
    labels = [form.format(high), *[""] * (ROWS - 2), form.format(low)]
    rows = [
        f"{label:>7} │" + "".join(LEVELS[min(max(height - 8 * row, 0), 8)] for height in heights)
        for label, row in zip(labels, reversed(range(ROWS)), strict=True)
    ]
    return [f"{title}, generations {generations[0]} to {generations[-1]}", *rows]


def changed_answer(evaluations: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """Three lines: a held-out problem, its first and its last answer, which differ; of several problems, one that is
    right only now is preferred. No lines where no answer changed."""
    ends = [evaluations[generation].get("answers", ()) for generation in (min(evaluations), max(evaluations))]
    pairs = [pair for pair in zip(*ends, strict=False) if pair[0]["completion"] != pair[1]["completion"]]
    if not pairs:
        return []
    first, last = max(pairs, key=lambda pair: bool(pair[1]["correct"]) - bool(pair[0]["correct"]))
    return [f"asked:  {_short(first['prompt'])}", f"before: {_marked(first)}", f"after:  {_marked(last)}"]


def _marked(answer: Mapping[str, Any]) -> str:
    mark = {True: "✓ ", False: "✗ "}.get(answer["correct"], "")
    return mark + _short(answer["completion"])


def _short(text: str | Sequence[Mapping[str, str]]) -> str:
    words = text if isinstance(text, str) else text[-1]["content"]
    line = harmless(" ".join(words.split()))
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"
