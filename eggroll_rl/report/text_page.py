"""The page of a run on text."""

from pathlib import Path

from eggroll_rl.config import Recipe
from eggroll_rl.report.drawing import Charts
from eggroll_rl.report.pages import write_page
from eggroll_rl.report.run_page import Facts, before_and_after, common_facts, limits, replicas, training_seconds
from eggroll_rl.report.series import History
from eggroll_rl.report.text_charts import text_charts
from eggroll_rl.report.words import count, duration, plural, share
from eggroll_rl.runs.folder import RunFolder

LAYER = "layers."  # begins the names of a layer's tensors


def write_text_page(run: RunFolder, recipe: Recipe, path: Path) -> None:
    """Write the page of a run on text.

    Raises:
        UsageError: the file cannot be written.
    """
    history = History.of(run, recipe)
    layers, saturation = saturation_table(history)
    facts = {
        **common_facts(run, recipe),
        "kind": "EGGROLL run",
        "lede": _lede(history),
        "figures": _figures(history),
        "sections": text_charts(history, Charts()),
        "samples": before_and_after(run),
        "after": plural(len(history.generations), "update"),
        "layers": layers,
        "saturation": saturation,
        "settings": _settings(recipe, history),
    }
    write_page("text", facts, path)


def saturation_table(history: History) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Column heads (layer numbers) and rows of the saturation table, from the last evaluation.

    A row is a kind of tensor with, for each layer, the share of its weights at -127 or 127 and of its products; a
    tensor outside the layers has one cell.
    """
    last = history.evaluations[-1]["saturation"] if history.evaluations else {"weights": {}, "products": {}}
    rows: dict[str, list[str]] = {}
    layers: dict[str, None] = {}
    for name, value in last["weights"].items():
        layer, _, kind = name.removeprefix(LAYER).rpartition(".") if name.startswith(LAYER) else ("", "", name)
        products = f" / {share(last['products'][name])}" if name in last["products"] else ""
        rows.setdefault(kind, []).append(share(value) + products)
        if layer:
            layers[layer] = None
    return list(layers), list(rows.items())


def _lede(history: History) -> str:
    spent = f"{plural(len(history.generations), 'update')}, {duration(training_seconds(history))} of training"
    evaluations = history.evaluations
    if not evaluations:
        return f"{spent}; held-out text was not measured."
    known = ", ".join(f"{name} {bits:.2f}" for name, bits in evaluations[-1]["yardsticks"].items())
    if len(evaluations) == 1:
        return f"Held-out text takes {evaluations[0]['bits_per_byte']:.2f} bits per byte after {spent} ({known})."
    first, last = (evaluations[index]["bits_per_byte"] for index in (0, -1))
    return f"Held-out text went from {first:.2f} to {last:.2f} bits per byte in {spent} ({known})."


def _figures(history: History) -> list[tuple[str, str, str]]:
    seconds, read = training_seconds(history), history.total("tokens")
    figures = [
        ("Updates", count(len(history.generations)), f"{plural(history.rollouts, 'member')} each"),
        ("Bytes read", count(read), f"{read / seconds:,.0f} per second" if seconds else "by all members"),
        ("Training time", duration(seconds), "measuring not counted"),
    ]
    if history.evaluations:
        last = history.evaluations[-1]
        detail = f"on {plural(last['n'], 'stream')} of held-out text"
        figures.insert(0, ("Bits per byte", f"{last['bits_per_byte']:.3f}", detail))
    return figures


def _settings(recipe: Recipe, history: History) -> Facts:
    """The recipe in brief."""
    text, population = recipe.text, recipe.population
    assert text is not None
    corpus = history.evaluations[-1]["corpus"] if history.evaluations else text.name
    streams = f"{plural(population.size // text.group, 'stream')}, {plural(text.tokens, 'byte')} of each a generation"
    return [
        ("Model", recipe.model),
        ("Engine", recipe.engine.name + replicas(recipe)),
        ("Text", corpus),
        ("Streams", f"{streams}, each read by {plural(text.group, 'member')}"),
        ("Population", f"{plural(population.size, 'member')}, sigma {population.sigma:g}"),
        ("Votes", f"alpha {recipe.optimizer.alpha:g}"),
        *limits(recipe),
    ]
