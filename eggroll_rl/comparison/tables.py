"""The figures of a comparison as tables: one list of rows that a page and a Markdown file show alike."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from eggroll_rl.comparison.methods import LABELS, Settings
from eggroll_rl.report.drawing import series_role
from eggroll_rl.report.words import count, duration, interval, plural, share

if TYPE_CHECKING:
    from eggroll_rl.comparison.schema import Comparison, PairedTest, Probe, Run, Summary, Trial

METHODS, TESTS = "Methods", "Is the difference real?"
OF_TESTS = (
    "Of all seeds: would other seeds and other problems say the same? The interval holds the true difference in at "
    "least 95% of comparisons, and equal methods get a p below 0.05 in at most 5%. Of one seed: do these two models "
    "differ on such problems, by the exact McNemar test; that tells nothing of other seeds."
)


class Cell(NamedTuple):
    """A figure or a name, what qualifies it, and the page it leads to; ``is_chosen`` marks the row it begins."""

    value: str
    detail: str = ""
    link: str | None = None
    is_chosen: bool = False


class Column(NamedTuple):
    """A column's heading, the role of its colour in the charts, and whether it holds words rather than figures."""

    label: str
    role: str | None = None
    is_words: bool = False


class Table(NamedTuple):
    """A title, a note, columns, and rows whose first cell names them."""

    title: str
    note: str
    columns: list[Column]
    rows: list[list[Cell]]


def tables(comparison: "Comparison", pages: Mapping[tuple[str, int], str]) -> dict[str, Table]:
    """All tables by their titles, without those that would be empty; ``pages`` are those of runs (method, seed)."""
    method, settings = Column("method", is_words=True), Column("settings", is_words=True)
    heads = [Column(s["label"], series_role(index)) for index, s in enumerate(comparison["summaries"])]
    memory, trials = comparison["memory_gib"], comparison["trials"]
    judged = max((trial["n"] or 0 for trial in trials), default=0)
    tried = f"Tried before the comparison, on {judged} problems that no run is judged by."
    made = [
        Table(METHODS, "", [Column("", is_words=True), *heads], _figures(comparison["summaries"])),
        Table(TESTS, OF_TESTS, [
            Column("methods", is_words=True), Column("seed"), Column("right by one alone"), Column("difference"),
            Column("p"),
        ], [_test(test) for test in comparison["tests"]]),
        Table("Runs", "", [
            method, Column("accuracy"), Column("rollouts"), Column("rewards failed"), Column("wall clock"),
        ], [_run(run, pages) for run in comparison["runs"]]),
        Table("Tuning", tried, [method, settings, Column("accuracy")], [_trial(trial) for trial in trials]),
        Table("Memory", "" if memory is None else f"The budget was {memory:g} GiB.", [
            method, settings, Column("peak"),
        ], [_probe(probe) for probe in comparison["probes"]]),
    ]  # fmt: skip
    return {table.title: table for table in made if table.rows}


def markdown_table(table: Table) -> list[str]:
    """The table as lines of Markdown."""
    rows = [[column.label for column in table.columns], ["---" if c.is_words else "---:" for c in table.columns]]
    rows += [[_markdown_cell(cell) for cell in row] for row in table.rows]
    return ["| " + " | ".join(row) + " |" for row in rows]


def _markdown_cell(cell: Cell) -> str:
    value = f"[{cell.value}]({cell.link})" if cell.link else cell.value
    words = " ".join(filter(None, [value, f"({cell.detail})" * bool(cell.detail), "**chosen**" * cell.is_chosen]))
    return words.replace("|", "\\|")


def settings_texts(settings: Settings) -> list[str]:
    """``key=value`` of a recipe, short: of a list of matrices their number, of a float three digits."""
    shown = {key: f"{len(value)} matrices" if isinstance(value, list) else value for key, value in settings.items()}
    return [f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}" for key, value in shown.items()]


def _figures(summaries: Sequence["Summary"]) -> list[list[Cell]]:
    def row(name: str, cell: Callable[[Any], Cell]) -> list[Cell]:
        return [Cell(name), *map(cell, summaries)]

    def plain(name: str, key: str, words: Callable[[float], str] = count) -> list[Cell]:
        return row(name, lambda s: Cell("not measured" if s[key] is None else words(s[key])))

    sampled = [summary["pass_at_k"] | summary["maj_at_k"] for summary in summaries]
    names = dict.fromkeys(name for shares in sampled for name in shares)
    return [
        row("Held-out accuracy", _accuracy),
        plain("answers judged", "n"),
        row("of each seed", lambda s: Cell(", ".join(map(share, s["seed_accuracies"])))),
        plain("before training", "base_accuracy", share),
        *([Cell(name), *(Cell(share(shares[name]) if name in shares else "") for shares in sampled)] for name in names),
        plain("Rollouts", "rollouts"),
        plain("Tokens", "tokens"),
        plain("Generations", "generations"),
        plain("Updates", "updates"),
        plain("Rollouts per second", "samples_per_second", lambda value: f"{value:,.1f}"),
        plain("Tokens per second", "tokens_per_second"),
        plain("Peak memory, GiB", "peak_memory_gib", lambda value: f"{value:.2f}"),
        plain("Floating-point operations", "flops", lambda value: f"{value:.2e}"),
        plain("Accuracy on what is not trained", "retention", share),
        plain("Drift from the base", "drift", lambda value: f"{value:.2%}"),
        plain("Training time", "seconds_training", duration),
        plain("Loading time", "seconds_loading", duration),
    ]


def _test(test: "PairedTest") -> list[Cell]:
    low, high, p_value = test["low"], test["high"], test["p_value"]
    between = "" if low is None or high is None else f"{100 * low:+.1f} to {100 * high:+.1f}"
    return [
        Cell(f"{LABELS[test['first']]} against {LABELS[test['second']]}"),
        Cell("all" if test["seed"] is None else str(test["seed"])),
        Cell(f"{test['only_first']} : {test['only_second']}", f"of {plural(test['n'], 'answer')}"),
        Cell(f"{100 * test['difference']:+.1f} points", between),
        Cell(f"{p_value:.3f}" if p_value >= 0.001 else f"{p_value:.0e}"),
    ]


def _run(run: "Run", pages: Mapping[tuple[str, int], str]) -> list[Cell]:
    return [
        Cell(LABELS[run["method"]], f"seed {run['seed']}", pages.get((run["method"], run["seed"]))),
        _accuracy(run),
        Cell(count(run["rollouts"])),
        Cell(count(run["reward_failures"])),
        Cell(duration(run["seconds_total"])),
    ]


def _trial(trial: "Trial") -> list[Cell]:
    return [
        Cell(LABELS[trial["method"]], is_chosen=trial["chosen"]),
        Cell(", ".join(settings_texts(trial["settings"])), duration(60 * trial["minutes"])),
        Cell("failed") if trial["accuracy"] is None else _accuracy(trial),
    ]


def _probe(probe: "Probe") -> list[Cell]:
    memory, late = probe["peak_memory_gib"], "" if probe["in_time"] else "longer than the minutes"
    return [
        Cell(LABELS[probe["method"]], is_chosen=probe["chosen"]),
        Cell(", ".join(settings_texts(probe["settings"])), f"{plural(probe['rollouts'], 'rollout')} in one batch"),
        Cell("failed") if memory is None else Cell(f"{memory:.2f} GiB", late),
    ]


def _accuracy(facts: Any) -> Cell:
    return Cell(share(facts["accuracy"]), interval(facts["low"], facts["high"]))
