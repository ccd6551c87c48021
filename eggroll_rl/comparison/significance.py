"""From runs to curves, tests and a sentence."""

import math
from collections.abc import Sequence
from itertools import combinations
from statistics import fmean
from typing import TYPE_CHECKING

from eggroll_rl.comparison.methods import LABELS
from eggroll_rl.runs.evaluation import wilson_interval

if TYPE_CHECKING:
    from eggroll_rl.comparison.schema import PairedTest, Point, Run, Summary

LEVEL = 0.05  # of a p-value below which methods count as distinguishable
MOST = 0.9  # of the best gain: who comes so far first


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p-value of the exact test (McNemar 1947): a fair coin for every problem that just one solves."""
    n = only_first + only_second
    tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**n)


def curve(runs: Sequence["Run"], marks: int) -> list["Point"]:
    """Held-out accuracy at every mark: of each run, the newest evaluation by then."""
    points: list[Point] = []
    for mark in range(marks + 1):
        newest = [max((e for e in run["evaluations"] if e["mark"] <= mark), key=lambda e: e["mark"]) for run in runs]
        n = sum(e["n"] for e in newest)
        right = sum(round(e["accuracy"] * e["n"]) for e in newest)
        low, high = wilson_interval(right, n)
        points.append(
            {
                "mark": mark,
                "seconds": fmean(e["seconds"] for e in newest),
                "rollouts": fmean(e["rollouts"] for e in newest),
                "accuracy": right / n,
                "low": min(e["accuracy"] for e in newest),
                "high": max(e["accuracy"] for e in newest),
                "wilson_low": low,
                "wilson_high": high,
            }
        )
    return points


def paired_tests(runs: Sequence["Run"], methods: Sequence[str], seeds: Sequence[int]) -> list["PairedTest"]:
    """Every two methods: all seeds pooled, then each seed."""
    correct = {(run["method"], run["seed"]): run["correct"] for run in runs}
    tests: list[PairedTest] = []
    for first, second in combinations(methods, 2):
        for seed, chosen in [(None, seeds), *((seed, [seed]) for seed in seeds)]:
            pairs = [pair for s in chosen for pair in zip(correct[first, s], correct[second, s], strict=True)]
            only_first, only_second = sum(a > b for a, b in pairs), sum(b > a for a, b in pairs)
            tests.append(
                {
                    "first": first,
                    "second": second,
                    "seed": seed,
                    "only_first": only_first,
                    "only_second": only_second,
                    "n": len(pairs),
                    "difference": (only_first - only_second) / len(pairs),
                    "p_value": mcnemar(only_first, only_second),
                }
            )
    return tests


def conclude(summaries: Sequence["Summary"], tests: Sequence["PairedTest"], minutes: float) -> str:
    """Who is ahead, by how much and how surely, or that it cannot be told; and who had most of it first."""
    by_method = {summary["method"]: summary for summary in summaries}
    clauses = []
    for pooled in (test for test in tests if test["seed"] is None):
        names = pooled["first"], pooled["second"]
        ahead, behind = names if pooled["difference"] >= 0 else names[::-1]
        sign = 1 if pooled["difference"] >= 0 else -1
        single = [t for t in tests if (t["first"], t["second"]) == names and t["seed"] is not None]
        leads = sum(sign * test["difference"] > 0 for test in single)
        figures = (
            f"{by_method[ahead]['accuracy']:.1%} against {by_method[behind]['accuracy']:.1%} of {pooled['n']} answers; "
            f"exact McNemar p = {pooled['p_value']:.2g}; {LABELS[ahead]} ahead with {leads} of {len(single)} seeds"
        )
        if pooled["p_value"] < LEVEL:
            points = 100 * abs(pooled["difference"])
            clauses.append(f"{LABELS[ahead]} is ahead of {LABELS[behind]} by {points:.1f} points ({figures})")
        else:
            clauses.append(f"{LABELS[ahead]} and {LABELS[behind]} are not distinguishable ({figures})")
    after = f"After {minutes:g} minutes of training each"
    if not clauses:
        (only,) = summaries
        return f"{after}, {only['label']} answers {only['accuracy']:.1%} right; there is nothing to compare it with."
    return f"{after}, {'; '.join(clauses)}.{_race(summaries)}"


def _race(summaries: Sequence["Summary"]) -> str:
    """When each method's mean curve first showed most of the best gain; empty where nothing was gained."""
    base, best = summaries[0]["base_accuracy"], max(summary["accuracy"] for summary in summaries)
    if best <= base:
        return ""
    level, said = base + MOST * (best - base), []
    for summary in summaries:
        seconds = next((point["seconds"] for point in summary["curve"] if point["accuracy"] >= level), None)
        said.append(f"{summary['label']} {'not at all' if seconds is None else f'after {seconds / 60:.1f} minutes'}")
    return f" Most of the best gain, {level:.1%}, was first measured of {', of '.join(said)}."
