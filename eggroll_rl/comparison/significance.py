"""From runs to curves, tests and a sentence.

Legend: S seeds of a method, P held-out problems.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eggroll_rl.comparison.methods import LABELS
from eggroll_rl.system.errors import UsageError

if TYPE_CHECKING:
    from eggroll_rl.comparison.schema import PairedTest, Point, Run, Summary

LEVEL = 0.05  # of a p-value below which methods count as distinguishable
MOST_OF_GAIN = 0.9  # of the best gain: who comes so far first


@dataclass(frozen=True)
class Estimate:
    """A mean accuracy, or a difference of two, and the variances by which other seeds and problems would move it.

    Seeds and problems are both random: S is a handful, so that its variance is known badly. The interval is
    ``value +- sqrt(t_seeds**2 * seeds + t_problems**2 * problems)`` with Student's quantiles for the degrees of freedom
    of each variance. It covers the truth at least as often as it says, whatever the share of each (Banerjee 1960,
    Sankhya 22:357), where one t for the sum of both (Satterthwaite) covers it too seldom with two or three seeds.

    Attributes:
        value: of the runs at hand.
        seeds: its variance by the training of the runs, which includes the luck of single answers.
        problems: its variance by the choice of the problems, beyond that luck.
        freedom: of ``seeds``, 0 with one seed, which tells nothing of others; of ``problems``.
        ends: the least and the largest value that there can be.
    """

    value: float
    seeds: float
    problems: float
    freedom: tuple[int, int]
    ends: tuple[float, float]

    def half_width(self, level: float) -> float:
        """Of the interval that misses the truth with probability ``level`` at most."""
        from scipy.special import stdtrit

        if not self.freedom[0]:
            return math.inf
        t_seeds, t_problems = (-float(stdtrit(freedom, level / 2)) for freedom in self.freedom)
        return math.hypot(t_seeds * math.sqrt(self.seeds), t_problems * math.sqrt(self.problems))

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        half, (least, largest) = self.half_width(level), self.ends
        return max(least, self.value - half), min(largest, self.value + half)

    def p_value(self) -> float:
        """Two-sided, of the value being 0: the level at which the interval just reaches it, or the smallest that tells
        1 + p from 1; 1 with one seed."""
        from scipy.optimize import brentq

        if not self.freedom[0] or self.value == 0:  # no interval is too narrow to reach a value of 0
            return 1.0
        smallest = float(np.finfo(float).eps)
        if self.half_width(smallest) < abs(self.value):
            return smallest
        return float(brentq(lambda level: self.half_width(level) - abs(self.value), smallest, 1.0))


def estimate(*methods: ArrayLike) -> Estimate:
    """The accuracy of a method, or the difference of the first of two and the second.

    Args:
        methods: right (1) or wrong (0) of each, [S, P]; the same problems in the same order.
    """
    answers = [np.asarray(method, dtype=np.float64) for method in methods]
    S, P = answers[0].shape
    signs, ends = ((1, -1), (-1.0, 1.0)) if len(answers) == 2 else ((1,), (0.0, 1.0))
    effect_P = np.add.reduce([sign * right_SP.mean(0) for sign, right_SP in zip(signs, answers, strict=True)])
    # Two more problems at each end, so that a few on which all agree are no certainty (Agresti and Coull 1998).
    problems = np.var([*effect_P, *ends, *ends], ddof=1) / (P + 4)
    seeds = luck = 0.0
    if S > 1:
        step = 1 / (12 * P**2)  # the variance of rounding to whole answers: equal counts are no certainty
        seeds = sum((float(right_SP.mean(1).var(ddof=1)) + step) / S for right_SP in answers)
        luck = sum(_luck(right_SP) / (S * P) for right_SP in answers)
    return Estimate(float(effect_P.mean()), seeds, max(0.0, float(problems) - luck), (S - 1, P + 3), ends)


def _luck(right_SP: NDArray[np.float64]) -> float:
    """The variance of single answers that neither their run nor their problem explains: of the residuals of a two-way
    layout."""
    S, P = right_SP.shape
    if P == 1:
        return 0.0
    residual_SP = right_SP - right_SP.mean(0) - right_SP.mean(1, keepdims=True) + right_SP.mean()
    return float((residual_SP**2).sum()) / ((S - 1) * (P - 1))


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p-value of the exact test (McNemar 1947): a fair coin for every problem that just one solves."""
    from scipy.stats import binomtest

    n = only_first + only_second
    return float(binomtest(only_first, n).pvalue) if n else 1.0


def curve(runs: Sequence["Run"], marks: int) -> list["Point"]:
    """Held-out accuracy at every mark: of each run, the newest evaluation by then."""
    points: list[Point] = []
    for mark in range(marks + 1):
        newest = [max((e for e in run["evaluations"] if e["mark"] <= mark), key=lambda e: e["mark"]) for run in runs]
        n = sum(e["n"] for e in newest)
        right = sum(round(e["accuracy"] * e["n"]) for e in newest)
        points.append(
            {
                "mark": mark,
                "seconds": fmean(e["seconds"] for e in newest),
                "rollouts": fmean(e["rollouts"] for e in newest),
                "accuracy": right / n if n else 0.0,
                "low": min(e["accuracy"] for e in newest),
                "high": max(e["accuracy"] for e in newest),
            }
        )
    return points


def correct_by_run(runs: Sequence["Run"]) -> dict[tuple[str, int], NDArray[np.float64]]:
    """Right (1) or wrong (0) by (method, seed), [P], over the problems that the reward judged in every run.

    Raises:
        UsageError: there is no such problem.
    """
    if len({len(run["correct"]) for run in runs}) > 1:
        raise UsageError(
            "the runs were judged on other problems, because the data has changed: choose another --output"
        )
    correct = np.array([run["correct"] for run in runs], dtype=np.float64)  # NaN where the reward gave None
    judged_P = ~np.isnan(correct).any(0)
    if not judged_P.any():
        raise UsageError(
            "nothing to compare: the reward gave None to every held-out problem in one run or another; see to the "
            "first of rewards, or take more problems by evaluation.n"
        )
    return {(run["method"], run["seed"]): right for run, right in zip(runs, correct[:, judged_P], strict=True)}


def paired_tests(runs: Sequence["Run"], methods: Sequence[str], seeds: Sequence[int]) -> list["PairedTest"]:
    """Every two methods over all seeds, then their models of each seed.

    Over all seeds the intervals hold together for all pairs, and the p-values are corrected for their number
    (Bonferroni): among equal methods, any pair at all is told apart in one comparison of twenty at most.
    """
    correct = correct_by_run(runs)
    pairs = list(combinations(methods, 2))
    tests: list[Any] = []
    for first, second in pairs:
        one_SP, other_SP = (np.array([correct[method, seed] for seed in seeds]) for method in (first, second))
        over_all = estimate(one_SP, other_SP)
        low, high = over_all.interval(LEVEL / len(pairs))
        interval = {"low": low, "high": high, "p_value": min(1.0, len(pairs) * over_all.p_value())}
        tests.append({"first": first, "second": second, "seed": None, **_solved(one_SP, other_SP), **interval})
        for seed, one_P, other_P in zip(seeds, one_SP, other_SP, strict=True):
            solved = _solved(one_P, other_P)
            exact = {"low": None, "high": None, "p_value": mcnemar(solved["only_first"], solved["only_second"])}
            tests.append({"first": first, "second": second, "seed": seed, **solved, **exact})
    return tests


def _solved(one: NDArray[np.float64], other: NDArray[np.float64]) -> Any:
    only_first, only_second = int((one > other).sum()), int((one < other).sum())
    difference = (only_first - only_second) / one.size
    return {"only_first": only_first, "only_second": only_second, "n": one.size, "difference": difference}


def conclude(summaries: Sequence["Summary"], tests: Sequence["PairedTest"], minutes: float) -> str:
    """Who is ahead, by how much and how surely, or that it cannot be told; and who had most of it first."""
    by_method = {summary["method"]: summary for summary in summaries}
    clauses = []
    for test in (test for test in tests if test["seed"] is None):
        pair = test["first"], test["second"]
        single = [t for t in tests if (t["first"], t["second"]) == pair and t["seed"] is not None]
        ahead, behind = pair if test["difference"] >= 0 else pair[::-1]
        accuracies = f"{by_method[ahead]['accuracy']:.1%} against {by_method[behind]['accuracy']:.1%}"
        clause = _clause_of_one(test, single[0]) if len(single) == 1 else _clause(test, single)
        clauses.append(clause.format(ahead=LABELS[ahead], behind=LABELS[behind], accuracies=accuracies))
    after = f"After {minutes:g} minutes of training each"
    if not clauses:
        (only,) = summaries
        return f"{after}, {only['label']} answers {only['accuracy']:.1%} right; there is nothing to compare it with."
    return f"{after}, {'; '.join(clauses)}.{_race(summaries)}"


def _clause(test: "PairedTest", single: Sequence["PairedTest"]) -> str:
    """Of a pair with several seeds; the names and accuracies are to be filled in."""
    assert test["low"] is not None and test["high"] is not None, "only a test of one seed has no interval"
    sign = 1 if test["difference"] >= 0 else -1
    low, high = sorted((100 * sign * test["low"], 100 * sign * test["high"]))
    leads = sum(sign * one["difference"] > 0 for one in single)
    figures = (
        f"{{accuracies}} of {single[0]['n']} problems; over seeds and problems the difference is {low:+.1f} to "
        f"{high:+.1f} points, p = {test['p_value']:.2g}; {{ahead}} ahead with {leads} of {len(single)} seeds"
    )
    if test["p_value"] < LEVEL:
        return f"{{ahead}} is ahead of {{behind}} by {100 * abs(test['difference']):.1f} points ({figures})"
    return f"{{ahead}} and {{behind}} are not distinguishable ({figures})"


def _clause_of_one(test: "PairedTest", single: "PairedTest") -> str:
    """The same of a pair with one seed: it tells of two models, and nothing of the methods that made them."""
    differ = "differ" if single["p_value"] < LEVEL else "do not differ"
    return (
        f"one seed cannot tell {{ahead}} from {{behind}}, because another may turn them round ({{accuracies}} of "
        f"{test['n']} problems; on these the two models {differ} beyond chance, exact McNemar "
        f"p = {single['p_value']:.2g})"
    )


def _race(summaries: Sequence["Summary"]) -> str:
    """When each method's mean curve first showed most of the best gain; empty where nothing was gained."""
    base, best = summaries[0]["base_accuracy"], max(summary["accuracy"] for summary in summaries)
    if best <= base:
        return ""
    level, said = base + MOST_OF_GAIN * (best - base), []
    for summary in summaries:
        seconds = next((point["seconds"] for point in summary["curve"] if point["accuracy"] >= level), None)
        when = "never" if seconds is None else f"after {seconds / 60:.1f} minutes"
        said.append(f"{when} with {summary['label']}")
    return f" Most of the best gain, an accuracy of {level:.1%}, was reached {', '.join(said)}."
