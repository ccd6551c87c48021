"""Tests and curves of a comparison against other implementations; equal methods are seldom told apart.

Legend: M methods, S seeds, P problems.
"""

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom, binomtest, t

from eggroll_rl.comparison.significance import LEVEL, conclude, correct_by_run, curve, estimate, mcnemar, paired_tests
from eggroll_rl.system.errors import UsageError

METHODS = ("eggroll", "grpo", "openes")
TRIALS = 300


def made_run(method: str, seed: int, correct: str, marks: dict[int, float] | None = None) -> Any:
    """A run whose final model solves the problems marked 1, and whose evaluations at these marks are of 10 problems."""
    return {
        "method": method,
        "seed": seed,
        "correct": [int(letter) for letter in correct],
        "evaluations": [
            {"mark": mark, "seconds": 10.0 * mark + seed, "rollouts": 100 * mark, "accuracy": accuracy, "n": 10}
            for mark, accuracy in (marks or {}).items()
        ],
    }


def paired(correct_MSP: NDArray[np.bool_]) -> list[Any]:
    methods, seeds = METHODS[: len(correct_MSP)], range(correct_MSP.shape[1])
    runs: list[Any] = [
        {"method": method, "seed": seed, "correct": correct_MSP[m, seed].astype(int).tolist()}
        for (m, method), seed in product(enumerate(methods), seeds)
    ]
    return paired_tests(runs, methods, seeds)


def over_all(correct_MSP: NDArray[np.bool_]) -> list[Any]:
    return [test for test in paired(correct_MSP) if test["seed"] is None]


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 1), (1, 0), (5, 5), (3, 12), (40, 21), (700, 650), (0, 900)])
def test_mcnemar_is_the_binomial_test(first: int, second: int) -> None:
    tail = binom.cdf(min(first, second), first + second, 0.5)
    assert mcnemar(first, second) == pytest.approx(min(1.0, 2 * tail), rel=1e-9)


# How answers come about, in logits: the problems differ (``hard``), a method keeps its own taste for a problem over all
# seeds (``taste``), a run has luck in training (``luck``, of each method), and its own taste (``whim``).
SITUATIONS: dict[str, dict[str, Any]] = {
    "independent answers": {},
    "a method errs on the same problems with every seed": {"taste": 3.0},
    "luck in training": {"luck": (0.3, 0.3)},
    "much luck": {"luck": (3.0, 3.0)},
    "taste and luck": {"taste": 3.0, "luck": (0.3, 0.3)},
    "luck of one method alone": {"luck": (0.0, 1.5)},
    "answers that leave nothing to chance": {"taste": 100.0, "hard": 300.0, "luck": (3.0, 3.0)},
    "runs with tastes of their own": {"whim": 3.0},
    "coins": {"hard": 0.0},
    "hardly anything right": {"shift": -7.0, "luck": (0.5, 0.5)},
}


def answers(
    chance: np.random.Generator,
    S: int,
    P: int,
    methods: int = 2,
    hard: float = 6.0,
    taste: float = 0.0,
    luck: tuple[float, ...] = (0.0, 0.0),
    whim: float = 0.0,
    shift: float = 0.3,
    lead: float = 0.0,
) -> NDArray[np.bool_]:
    """Right or wrong [M, S, P]; the first method is ``lead`` ahead in every logit."""
    logits_MSP = (
        chance.normal(shift, hard, P)
        + chance.normal(0, taste, (methods, 1, P))
        + chance.normal(0, 1, (methods, S, 1)) * np.reshape(luck, (-1, 1, 1))
        + chance.normal(0, whim, (methods, S, P))
    )
    logits_MSP[0] += lead
    return chance.random((methods, S, P)) < 1 / (1 + np.exp(-np.clip(logits_MSP, -500, 500)))


@pytest.mark.parametrize("S", [1, 2, 3, 5])
@pytest.mark.parametrize("situation", SITUATIONS)
def test_equal_methods_are_told_apart_in_one_of_twenty_comparisons_at_most(situation: str, S: int) -> None:
    chance = np.random.default_rng(S)
    told = sum(over_all(answers(chance, S, 128, **SITUATIONS[situation]))[0]["p_value"] < LEVEL for _ in range(TRIALS))
    assert told <= binom.ppf(0.999, TRIALS, LEVEL)
    if S == 1:
        assert told == 0, "one seed tells nothing of others"


@pytest.mark.parametrize("S", [2, 3])
@pytest.mark.parametrize("P", [1, 2, 3, 5, 10, 30])
@pytest.mark.parametrize("situation", SITUATIONS)
def test_equal_methods_are_seldom_told_apart_by_a_handful_of_problems(situation: str, P: int, S: int) -> None:
    chance = np.random.default_rng([S, P])
    told = sum(over_all(answers(chance, S, P, **SITUATIONS[situation]))[0]["p_value"] < LEVEL for _ in range(100))
    assert told <= binom.ppf(0.9999, 100, LEVEL)


@pytest.mark.parametrize("S", [2, 3])
@pytest.mark.parametrize("share", [0.3, 0.9])
@pytest.mark.parametrize("situation", ["independent answers", "taste and luck", "luck of one method alone"])
def test_equal_methods_are_seldom_told_apart_where_many_answers_are_judged_by_nobody(
    situation: str, share: float, S: int
) -> None:
    """The reward leaves out a share of the problems, and now and then an answer, wrong ones more often than right."""
    chance, told, compared = np.random.default_rng([S, int(10 * share)]), 0, 0
    for _ in range(TRIALS):
        correct_MSP = answers(chance, S, 64, **SITUATIONS[situation])
        never_P = chance.random(64) < share
        unjudged_MSP = never_P | (chance.random(correct_MSP.shape) < np.where(correct_MSP, 0.005, 0.03))
        runs: list[Any] = [
            {
                "method": METHODS[m],
                "seed": s,
                "correct": np.where(unjudged_MSP[m, s], None, correct_MSP[m, s].astype(int)).tolist(),
            }
            for m, s in product(range(2), range(S))
        ]
        if not unjudged_MSP.any((0, 1)).all():
            compared += 1
            told += paired_tests(runs, METHODS[:2], range(S))[0]["p_value"] < LEVEL
    assert compared > TRIALS / 2
    assert told <= binom.ppf(0.999, compared, LEVEL)


def test_among_three_equal_methods_any_two_are_seldom_told_apart() -> None:
    chance, told = np.random.default_rng(0), 0
    for _ in range(TRIALS):
        tests = over_all(answers(chance, 3, 128, methods=3, taste=3.0, luck=(0.3, 0.3, 0.3)))
        assert len(tests) == 3
        told += any(test["p_value"] < LEVEL for test in tests)
    assert told <= binom.ppf(0.999, TRIALS, LEVEL)


@pytest.mark.parametrize(("S", "lead"), [(2, 6.0), (3, 2.0), (5, 1.0)])
def test_a_better_method_is_found(S: int, lead: float) -> None:
    chance, found, ahead = np.random.default_rng(S), 0, []
    for _ in range(100):
        (test,) = over_all(answers(chance, S, 512, luck=(0.1, 0.1), lead=lead))
        found += test["p_value"] < LEVEL
        ahead.append(test["difference"])
    assert found >= 80, f"found {found} of 100 leads of {np.mean(ahead):.1%}"


@pytest.mark.parametrize("S", [2, 3, 5])
def test_the_interval_of_an_accuracy_holds_what_other_seeds_and_problems_give(S: int) -> None:
    chance, missed = np.random.default_rng(S), 0
    settings: Any = {"methods": 1, "luck": (0.5,), "taste": 2.0}
    truth = np.mean([answers(chance, 1, 5000, **settings).mean() for _ in range(500)])
    for _ in range(TRIALS):
        low, high = estimate(answers(chance, S, 128, **settings)[0]).interval()
        missed += not low <= truth <= high
    assert missed <= binom.ppf(0.999, TRIALS, LEVEL)


correct_answers = st.tuples(st.integers(1, 4), st.integers(1, 12), st.integers(0, 2**32 - 1)).map(
    lambda drawn: np.random.default_rng(drawn[2]).random((2, drawn[0], drawn[1])) < 0.5
)


@given(correct_answers)
@example(np.array([[[True, False], [False, True]], [[False, True], [False, True]]]))  # nothing varies, nothing differs
def test_a_test_over_all_seeds_agrees_with_its_interval_and_knows_no_order(correct_MSP: NDArray[np.bool_]) -> None:
    (test,) = over_all(correct_MSP)
    assert -1 <= test["low"] <= test["difference"] <= test["high"] <= 1
    assert test["difference"] == pytest.approx(correct_MSP[0].mean() - correct_MSP[1].mean())
    assert 0 < test["p_value"] <= 1
    if abs(test["p_value"] - LEVEL) > 1e-9:
        assert (test["p_value"] < LEVEL) == (not test["low"] <= 0 <= test["high"])
    for other, sign in ((correct_MSP[:, ::-1, ::-1], 1), (correct_MSP[::-1], -1), (~correct_MSP, -1)):
        (again,) = over_all(other)
        assert again["p_value"] == pytest.approx(test["p_value"])
        assert again["difference"] == pytest.approx(sign * test["difference"])
    if correct_MSP.shape[1] == 1:
        assert (test["low"], test["high"], test["p_value"]) == (-1.0, 1.0, 1.0)


def test_runs_of_one_seed_given_three_times_are_no_more_evidence_than_their_problems() -> None:
    """Where the seeds agree on every answer, the problems alone are left: Student's test of the paired differences,
    but for the rounding to whole answers."""
    correct_MSP = np.repeat(answers(np.random.default_rng(0), 1, 200, taste=3.0, lead=1.0), 3, axis=1)
    (test,) = over_all(correct_MSP)
    differences = correct_MSP[0, 0].astype(float) - correct_MSP[1, 0]
    widened = np.append(differences, [-1, 1, -1, 1])
    rounding = t.isf(LEVEL / 2, 2) * np.sqrt(2 / 3 / (12 * 200**2))
    half = np.hypot(t.isf(LEVEL / 2, 203) * np.sqrt(widened.var(ddof=1) / 204), rounding)
    assert (test["low"], test["high"]) == pytest.approx((differences.mean() - half, differences.mean() + half))


def test_where_all_problems_are_alike_the_seeds_alone_are_left() -> None:
    """Every run has all right or all wrong: Student's test of the seeds, with the freedom of one method's."""
    right = {"first": [1, 1, 1, 0], "second": [0, 1, 0, 0]}
    one, other = (np.repeat(np.reshape(runs, (4, 1)), 10_000, axis=1) for runs in right.values())
    found = estimate(one, other)
    variance = np.var([1, 1, 1, 0], ddof=1) / 4 + np.var([0, 1, 0, 0], ddof=1) / 4
    assert found.half_width(LEVEL) == pytest.approx(t.isf(LEVEL / 2, 3) * np.sqrt(variance), rel=1e-3)
    assert found.p_value() == pytest.approx(2 * t.sf(0.5 / np.sqrt(variance), 3), rel=1e-3)


def test_equal_counts_of_few_seeds_are_no_certainty() -> None:
    """Two seeds of each method happen to have as many right: by how much others differ is not known to be nothing."""
    first = np.array([[1] * 12 + [0] * 8, [0] * 8 + [1] * 12])
    second = np.array([[1] * 10 + [0] * 10, [0] * 10 + [1] * 10])
    assert estimate(first, second).p_value() > LEVEL
    low, high = estimate(first).interval()
    assert high - low > 0.1


def test_a_curve_begins_at_0_where_nothing_was_judged() -> None:
    run = made_run("grpo", 0, "1", {0: 0.0, 1: 0.5})
    run["evaluations"][0]["n"] = 0
    assert [point["accuracy"] for point in curve([run], 1)] == [0.0, pytest.approx(0.5)]


def test_runs_of_other_data_are_not_compared() -> None:
    with pytest.raises(UsageError, match="the data has changed"):
        correct_by_run([made_run("eggroll", 0, "1100"), made_run("grpo", 0, "110")])


def test_a_curve_holds_the_newest_evaluation_at_every_mark() -> None:
    runs = [made_run("grpo", 0, "1", {0: 0.2, 1: 0.4, 3: 0.6}), made_run("grpo", 2, "1", {0: 0.2, 2: 0.8, 3: 1.0})]
    points = curve(runs, 3)
    assert [(p["accuracy"], p["low"], p["high"]) for p in points] == [
        pytest.approx(triple) for triple in ((0.2, 0.2, 0.2), (0.3, 0.2, 0.4), (0.6, 0.4, 0.8), (0.8, 0.6, 1.0))
    ]
    assert [p["seconds"] for p in points] == [1.0, 6.0, 16.0, 31.0]


def test_pairs_are_counted_by_problem() -> None:
    runs = [
        made_run("eggroll", 0, "1100"),
        made_run("eggroll", 1, "1111"),
        made_run("grpo", 1, "0011"),
        made_run("grpo", 0, "1010"),
    ]
    tests = paired_tests(runs, ["eggroll", "grpo"], [0, 1])
    counts = [(test["seed"], test["only_first"], test["only_second"], test["n"]) for test in tests]
    assert counts == [(None, 3, 1, 8), (0, 1, 1, 4), (1, 2, 0, 4)]
    assert [test["difference"] for test in tests] == [0.25, 0.0, 0.5]
    assert [test["p_value"] for test in tests[1:]] == [1.0, binomtest(2, 2).pvalue]


def conclusion(solved: dict[str, list[int]], minutes: float = 10.0) -> str:
    """Of methods whose runs solve the first so many of 100 problems."""
    runs = [
        made_run(method, seed, "1" * right + "0" * (100 - right))
        for method, rights in solved.items()
        for seed, right in enumerate(rights)
    ]
    tests = paired_tests(runs, list(solved), range(len(runs) // len(solved)))
    return conclude(
        [summary(method, sum(rights) / len(rights) / 100) for method, rights in solved.items()], tests, minutes
    )


@pytest.mark.parametrize(
    ("eggroll", "grpo", "expected"),
    [
        ([60, 61, 59], [30, 31, 29], "EGGROLL is ahead of GRPO by 30.0 points (60.0% against 30.0% of 100 problems; "),
        ([10, 11, 9], [40, 41, 39], "GRPO is ahead of EGGROLL by 30.0 points (40.0% against 10.0% of 100 problems; "),
        ([50, 51], [51, 52], "GRPO and EGGROLL are not distinguishable (51.5% against 50.5% of 100 problems; "),
        ([90, 20, 70], [30, 31, 29], "EGGROLL and GRPO are not distinguishable (60.0% against 30.0% of 100 problems; "),
    ],
)
def test_the_conclusion_says_who_is_ahead(eggroll: list[int], grpo: list[int], expected: str) -> None:
    sentence = conclusion({"eggroll": eggroll, "grpo": grpo})
    assert sentence.startswith(
        f"After 10 minutes of training each, {expected}over seeds and problems the difference is "
    )
    leads = sum((one > other) == (sum(eggroll) > sum(grpo)) for one, other in zip(eggroll, grpo, strict=True))
    assert f"{expected[: expected.index(' ')]} ahead with {leads} of {len(grpo)} seeds)." in sentence


@pytest.mark.parametrize(("right", "differ"), [(60, "differ"), (31, "do not differ")])
def test_of_one_seed_the_conclusion_says_that_it_tells_nothing_of_others(right: int, differ: str) -> None:
    sentence = conclusion({"eggroll": [right], "grpo": [30]})
    p_value = binomtest(right - 30, right - 30).pvalue
    assert sentence.startswith(
        "After 10 minutes of training each, one seed cannot tell EGGROLL from GRPO, because another may turn them "
        f"round ({right}.0% against 30.0% of 100 problems; on these the two models {differ} beyond chance, exact "
        f"McNemar p = {p_value:.2g})."
    )
    assert "there is nothing to compare it with" in conclude([summary("grpo", 0.5)], [], 10.0)


def summary(method: str, accuracy: float, *measured: float) -> Any:
    """A method's, from 10 %; ``measured`` after each minute."""
    points = [{"seconds": 60.0 * minute, "accuracy": share} for minute, share in enumerate((0.1, *measured, accuracy))]
    return {"method": method, "label": method.upper(), "accuracy": accuracy, "base_accuracy": 0.1, "curve": points}


def test_the_conclusion_says_who_had_most_of_the_gain_first() -> None:
    tests = paired_tests([made_run(method, 0, "10") for method in ("eggroll", "grpo")], ["eggroll", "grpo"], [0])
    fast, slow = summary("eggroll", 0.48, 0.47, 0.2), summary("grpo", 0.5, 0.3, 0.4)
    assert conclude([fast, slow], tests, 3.0).endswith(
        "Most of the best gain, an accuracy of 46.0%, was reached after 1.0 minutes with EGGROLL, after 3.0 minutes "
        "with GRPO."
    )
    assert conclude([fast, summary("grpo", 0.2)], tests, 3.0).endswith(
        "reached after 1.0 minutes with EGGROLL, never with GRPO."
    )
    assert conclude([summary("eggroll", 0.1), summary("grpo", 0.05)], tests, 3.0).endswith("McNemar p = 1).")


@given(correct_answers, st.data())
def test_problems_that_are_not_judged_in_every_run_count_for_none(correct_MSP: NDArray[np.bool_], data: Any) -> None:
    M, S, P = correct_MSP.shape
    unjudged = data.draw(st.sets(st.tuples(st.integers(0, M - 1), st.integers(0, S - 1), st.integers(0, P - 1))))
    runs: list[Any] = [
        {
            "method": METHODS[m],
            "seed": seed,
            "correct": [None if (m, seed, p) in unjudged else int(correct_MSP[m, seed, p]) for p in range(P)],
        }
        for m, seed in product(range(M), range(S))
    ]
    judged = [p for p in range(P) if p not in {p for _, _, p in unjudged}]
    if judged:
        assert paired_tests(runs, METHODS[:M], range(S)) == paired(correct_MSP[:, :, judged])
    else:
        with pytest.raises(UsageError, match="gave None to every held-out problem"):
            paired_tests(runs, METHODS[:M], range(S))
