"""Grades against answers graded by hand, against math-verify's own pipeline, and on whatever text there may be."""

import time
from fractions import Fraction

import pytest
from graded_answers import COUNTDOWN, GSM8K, MATH, WORDS
from hypothesis import given, settings
from hypothesis import strategies as st
from math_verify import parse, verify

from eggroll_rl.rewards.boxed_math import boxed_math
from eggroll_rl.rewards.countdown import countdown
from eggroll_rl.rewards.gsm8k import gsm8k, gsm8k_marked
from eggroll_rl.rewards.text import accepted, exact_match, unwrapped

BEYOND_MATH_VERIFY = {"1\\,000", "1 000", "12\\,345\\,678", "42.", "**42**", "`42`", "\\varnothing", "\\text{June 5}"}
PIECES = st.sampled_from(
    [
        "1",
        "9",
        "0",
        "٣",
        ".",
        ",",
        "-",
        "-",
        " ",
        "\n",
        "$",
        "/",
        "\\frac",
        "{",
        "}",
        "^",
        "_",
        "=",
        "e",
        "E9",
        "####",
        "<answer>",
        "</answer>",
        "\\boxed{",
        "or",
        "x",
        "*",
        "**",
        "!",
        "(",
        ")",
        "\\,",
        "½",
        "\\text{",
        "\\sqrt{",
    ]
)


def grade(reward, completion, expected):
    return reward([""], [completion], answer=[expected])[0]


def test_there_are_many_right_and_wrong_answers():
    cases = [*GSM8K, *MATH, *WORDS, *COUNTDOWN]
    assert len({(text, str(gold)) for text, gold, _, _ in cases}) >= 200
    grades = [expected for _, _, expected, _ in cases]
    assert min(grades.count(1), grades.count(0)) >= 80


@pytest.mark.parametrize(("completion", "gold", "expected", "why"), GSM8K)
def test_gsm8k(completion, gold, expected, why):
    assert grade(gsm8k, completion, gold) == expected, why
    marked = any(mark in completion for mark in ("####", "<answer>", "box"))
    assert grade(gsm8k_marked, completion, gold) == (expected if marked or expected is None else 0), why


@pytest.mark.parametrize(("answer", "gold", "expected", "why"), MATH)
def test_boxed_mathematics(answer, gold, expected, why):
    assert grade(boxed_math, f"I box \\boxed{{3}} first, then \\boxed{{{answer}}}.", gold) == expected, why


@pytest.mark.parametrize(("completion", "gold", "expected", "why"), WORDS)
def test_exact_match(completion, gold, expected, why):
    assert grade(exact_match, completion, gold) == expected, why


@pytest.mark.parametrize(("answer", "problem", "expected", "why"), COUNTDOWN)
def test_countdown(answer, problem, expected, why):
    numbers, target = problem
    completion = f"<answer>1</answer> no: <answer>{answer}</answer>"
    assert countdown([""], [completion], numbers=[numbers], target=[target]) == [expected], why


# Agreement.


@pytest.mark.parametrize(
    ("answer", "gold"),
    [case[:2] for case in MATH if isinstance(case[1], str) and case[2] is not None and "boxed" not in case[1]],
)
def test_boxed_mathematics_agrees_with_math_verify(answer, gold):
    """Its pipeline as it is called elsewhere, limits by signals and all; where ours knows more it is said above."""
    theirs = verify(parse(f"\\boxed{{{gold}}}"), parse(f"\\boxed{{{answer}}}"))
    assert theirs == (grade(boxed_math, f"\\boxed{{{answer}}}", gold) == 1.0) or answer in BEYOND_MATH_VERIFY


numbers = st.fractions(-10_000, 10_000, max_denominator=1000)


@settings(max_examples=150, deadline=None)
@given(numbers, numbers | st.none(), st.integers(0, 3))
def test_numbers_agree_with_math_verify(gold, other, form):
    """Whatever the spelling, both say which numbers are equal."""
    value = gold if other is None else other
    sign = "-" if value < 0 else ""
    over, under = abs(value.numerator), value.denominator
    whole, rest = divmod(over, under)
    mixed = f"{sign}{whole}\\frac{{{rest}}}{{{under}}}" if whole and rest else f"{sign}{over}/{under}"
    text = (
        f"{sign}\\frac{{{over}}}{{{under}}}",
        f"{sign}{over}/{under}",
        mixed,
        f"{sign}\\dfrac{{{over}}}{{{under}}}",
    )[form]
    column, completion = f"{gold.numerator}/{gold.denominator}", f"\\boxed{{{text}}}"
    assert grade(gsm8k, completion, column) == float(value == gold)
    assert grade(boxed_math, completion, f"\\frac{{{gold.numerator}}}{{{gold.denominator}}}") == float(value == gold)


@settings(max_examples=300, deadline=None)
@given(
    st.integers(-(10**9), 10**9),
    st.sampled_from([",", "{,}", "\\,", "\\!,", " ", "\u202f", "'", "_"]),
    st.sampled_from(
        ["{}", "#### {}", "**{}**", "\\boxed{{{}}}", "<answer>{}</answer>", "It is {}.", "#### {} dollars"]
    ),
    st.sampled_from(["", ".0", ".00"]),
)
def test_thousands_are_read_in_every_spelling_and_place(number, mark, place, cents):
    completion = place.format(f"{number:,}".replace(",", mark) + cents)
    assert grade(gsm8k, completion, str(number)) == 1.0
    assert grade(gsm8k, completion, str(number + 1)) == 0.0
    assert grade(gsm8k, completion, float(number)) == 1.0


@settings(max_examples=200, deadline=None)
@given(numbers.filter(lambda number: number.denominator > 1), st.integers(1, 9999))
def test_no_part_of_a_fraction_is_its_value(number, other):
    for text in (f"{number}", f"\\boxed{{\\frac{{{number.numerator}}}{{{number.denominator}}}}}", f"#### {number}"):
        for part in {number.numerator, number.denominator, other}:
            assert grade(gsm8k, text, part) == float(number == Fraction(part))


# Any text.


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200) | st.lists(PIECES, max_size=60).map("".join))
def test_any_text_is_graded_at_once(text):
    began = time.thread_time()
    for completion in (text, f"#### {text}", f"<answer>{text}</answer>", f"\\boxed{{{text}}}"):
        for reward in (gsm8k, gsm8k_marked, exact_match):
            assert grade(reward, completion, "42") in (0.0, 1.0)
            assert grade(reward, "#### 42", text) in (0.0, 1.0, None)
        assert countdown([""], [completion], numbers=[[4, 2]], target=[42]) in ([0.0], [1.0])
    assert time.thread_time() - began < 0.2


@pytest.mark.parametrize(
    "piece", ["1", "1,", "- ", "$", "1 ", "1/", "\\frac", "*", "=", "1=", "a:", "{", "\\boxed{", "`"]
)
def test_a_megabyte_is_graded_at_once(piece):
    text = piece * (10**6 // len(piece))
    began = time.thread_time()
    for completion in (text, f"#### {text}", f"<answer>{text}</answer>", f"\\boxed{{{text}}}"):
        for reward in (gsm8k, gsm8k_marked, exact_match, boxed_math):
            assert grade(reward, completion, "42") == 0.0
        assert countdown([""], [completion], numbers=[[4, 2]], target=[42]) == [0.0]
    assert time.thread_time() - began < 5


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECES, max_size=25).map("".join))
def test_any_box_is_graded_soon(text):
    began = time.thread_time()
    assert grade(boxed_math, f"\\boxed{{{text}}}", "42") in (0.0, 1.0)
    assert grade(boxed_math, "\\boxed{42}", text) in (0.0, 1.0, None)
    assert time.thread_time() - began < 5


@given(st.text("ab *_`$.", max_size=12))
def test_unwrapping_takes_signs_alone(text):
    assert unwrapped(text) in text
    assert [letter for letter in unwrapped(text) if letter.isalpha()] == [letter for letter in text if letter.isalpha()]


@given(st.lists(st.integers() | st.none()))
def test_accepted_answers_are_those_that_are_there(values):
    there = [value for value in values if value is not None]
    assert accepted(values) == accepted(tuple(values)) == there
    assert [one for value in values for one in accepted(value)] == there
