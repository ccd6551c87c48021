"""The page of benchmark figures, drawn from what ``benchmarks/figures.py`` keeps of each commit."""

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from mkdocs.structure.files import File

FOLDER = Path(__file__).parents[2] / "benchmarks" / "figures"
PAGE = "figures.md"
HEAD = """# Figures of each commit

Throughput as `eggroll-rl bench` measures it; every figure is a median over interleaved repeats. A row is a commit,
measured by `python -m benchmarks.figures`, which keeps a file of JSON for it under `benchmarks/figures/`. Compare rows
whose machine and threads are the same.
"""
SHOWN = {"population": "population, tokens/s", "base": "plain inference, tokens/s", "generate": "`generate`, tokens/s"}
RATIO = "population / base"

Kept = dict[str, Any]  # a file of figures


def kept(folder: Path) -> list[Kept]:
    """What the files of a folder say, the oldest commit first."""
    files = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return sorted(files, key=lambda one: str(one["date"]))


def models(files: Sequence[Kept]) -> list[str]:
    """The models that were measured, those of the newest commits first."""
    return list(dict.fromkeys(result["model"] for one in reversed(files) for result in one["results"]))


def measured(files: Sequence[Kept], model: str) -> list[tuple[Kept, Kept]]:
    """The files that measured a model, each with its result."""
    return [(one, result) for one in files for result in one["results"] if result["model"] == model]


def page(files: Sequence[Kept]) -> str:
    """The page, in Markdown: for each model a picture and a table, its newest commit first."""
    return "\n".join([HEAD, *(line for model in models(files) for line in section(model, measured(files, model)))])


def section(model: str, rows: Sequence[tuple[Kept, Kept]]) -> Iterator[str]:
    """What is said of one model."""
    last = rows[-1][1]
    yield f"\n## {model}\n\n{last['members']} members x {last['rows_per_member']} rows, random weights.\n"
    yield f"![Tokens per second of {model}, commit by commit]({picture_of(model)})\n"
    yield f"| commit | date | {' | '.join(SHOWN.values())} | {RATIO} | tokens of an answer | torch, threads |"
    yield "|---|---|" + "---:|" * (len(SHOWN) + 2) + "---|"
    for one, result in reversed(rows):
        speed, where = result["tokens_per_second"], result["environment"]
        figures = [f"{speed[step]:,.0f}" for step in SHOWN]
        shown = [f"`{one['commit']}`", one["date"], *figures, f"{result['ratios'][RATIO]:.2f}", str(result["tokens"])]
        yield f"| {' | '.join(shown)} | {where['torch']}, {where['threads']} |"


def picture_of(model: str) -> str:
    """The name of a model's picture."""
    return f"figures_{''.join(letter if letter.isalnum() else '_' for letter in model)}.svg"


def drawn(rows: Sequence[tuple[Kept, Kept]]) -> bytes:
    """Tokens per second over the commits, as SVG."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    for step, title in SHOWN.items():
        speeds = [result["tokens_per_second"][step] for _, result in rows]
        axes.plot([one["commit"] for one, _ in rows], speeds, marker="o", label=title.split(",")[0].strip("`"))
    axes.set_ylim(bottom=0)
    axes.set_ylabel("tokens/s")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    image = io.BytesIO()
    figure.savefig(image, format="svg", metadata={"Date": None})
    return image.getvalue()


def on_files(files: Any, config: Any) -> Any:
    """What mkdocs calls with the pages: this one and its pictures join them."""
    found = kept(FOLDER)
    files.append(File.generated(config, PAGE, content=page(found)))
    for model in models(found):
        files.append(File.generated(config, picture_of(model), content=drawn(measured(found, model))))
    return files
