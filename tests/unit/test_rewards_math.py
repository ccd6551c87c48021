"""The rewards of GSM8K and of boxed mathematics, against answers graded by hand, and against answers that mean harm."""

import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eggroll_rl.rewards.boxed_math import boxed_math
from eggroll_rl.rewards.gsm8k import gsm8k, gsm8k_marked
from eggroll_rl.rewards.quantity import last_number
from eggroll_rl.rewards.text import boxed_text

MEGABYTE = 10**6
GOLD = "She has 6 * 7 = <<6*7=42>>42 eggs.\n#### 42"


def grade(reward, completion, gold):
    return reward([""], [completion], answer=[gold])[0]


# GSM8K.


@pytest.mark.parametrize(
    ("completion", "right", "right_if_marked"),
    [
        ("6 * 7 = 42\n#### 42", 1, 1),
        ("#### 42\n\nI hope that 7 helps!", 1, 1),
        ("#### 41\nno, wait\n#### 42", 1, 1),
        ("#### $42.00", 1, 1),
        ("#### 42 dollars", 1, 1),
        ("<think>41</think><answer>42</answer>", 1, 1),
        ("<answer>42</answer> #### 41", 1, 1),
        ("so \\boxed{42}.", 1, 1),
        ("The answer is 42.", 1, 0),
        ("The answer is **42**", 1, 0),
        ("It was 42 of 43", 0, 0),
        ("#### -42", 0, 0),
        ("#### 4.2", 0, 0),
        ("#### 142", 0, 0),
        ("#### 42%5", 0, 0),
        ("42\n####", 0, 0),
        ("#### forty-two", 0, 0),
        ("", 0, 0),
        ([{"role": "assistant", "content": "#### 42"}], 1, 1),
        ([{"role": "assistant", "content": None}], 0, 0),
    ],
)
def test_gsm8k(completion, right, right_if_marked):
    assert grade(gsm8k, completion, GOLD) == right
    assert grade(gsm8k_marked, completion, GOLD) == right_if_marked


@pytest.mark.parametrize(
    ("gold", "completion"),
    [
        ("#### 1,000", "#### 1000"),
        ("#### 1000", "about 1,000.0"),
        ("#### 1,234,567", "#### $1,234,567"),
        ("#### -5", "#### −5"),  # noqa: RUF001
        ("7", "#### 7"),
        (7, "#### 7"),
        (2.5, "2.50"),
    ],
)
def test_numbers_are_compared_exactly(gold, completion):
    assert grade(gsm8k, completion, gold) == 1.0


def test_no_gold_is_no_reward():
    assert gsm8k(["", ""], ["#### 1", "#### 1"], answer=[None, "#### 1"]) == [None, 1.0]


@settings(max_examples=200, deadline=None)
@given(st.integers(-(10**12), 10**12), st.integers(0, 999))
def test_printed_numbers_are_read_back(whole, thousandths):
    text = f"{whole:,}.{thousandths:03d}"
    assert last_number(f"it is {text}, not more") == Fraction(text.replace(",", ""))


@pytest.mark.parametrize(
    "text", ["9" * MEGABYTE, "1," * MEGABYTE, "#### " * MEGABYTE, "-" * MEGABYTE, "\\boxed{" * 10**5]
)
def test_a_hostile_number_costs_no_time(text):
    began = time.thread_time()
    assert grade(gsm8k, text, GOLD) == 0.0
    assert time.thread_time() - began < 2


# Boxes.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\\boxed{1}", "1"),
        ("\\boxed{1} then \\boxed{ 2 }.", "2"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{\\{1\\}}", "\\{1\\}"),
        ("\\boxed{1", None),
        ("\\boxed 1", None),
        ("boxed{1}", None),
        ("", None),
    ],
)
def test_the_last_box(text, expected):
    assert boxed_text(text) == expected


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        ("\\frac{1}{2}", "0.5", 1),
        ("1/2", "\\frac12", 1),
        ("x+1", "1+x", 1),
        ("2\\sqrt{2}", "\\sqrt{8}", 1),
        ("\\text{east}", "east", 1),
        ("10^{3}", "1{,}000", 1),
        ("90^\\circ", "90", 1),
        ("$7$", "7", 1),
        ("7", "so we get $\\boxed{7}$.", 1),
        ("x+2", "x+1", 0),
        ("0.333", "\\frac{1}{3}", 0),
        ("west", "\\text{east}", 0),
        ("", "7", 0),
        ("1" * 500, "1" * 500, 0),
        ("{" * 20 + "7" + "}" * 20, "7", 0),
        ("7", None, None),
        ("7", "", None),
    ],
)
def test_boxed_mathematics(answer, gold, expected):
    assert grade(boxed_math, f"I box \\boxed{{3}} first, then \\boxed{{{answer}}}.", gold) == expected


def test_where_there_is_no_box_the_answer_block_counts():
    assert grade(boxed_math, "<answer>1/2</answer>", "0.5") == 1.0
    assert grade(boxed_math, "1/2", "0.5") == 0.0


def test_an_answer_is_never_executed(tmp_path: Path):
    mark = tmp_path / "executed"
    code = f"__import__('pathlib').Path('{mark}').touch()"
    for text in (code, f"\\text{{{code}}}", f"${code}$", f"\\operatorname{{{code}}}"):
        assert grade(boxed_math, f"\\boxed{{{text}}}", "7") == 0.0
    assert not mark.exists()


@pytest.mark.parametrize(
    "answer",
    [
        "2^{9999 \\cdot 9999 \\cdot 9999}",
        "2^{(9999)(9999)(9999)}",
        "2^{\\frac{99999999999}{1}}",
        "9^{9^{9^{9}}}",
        "(9^9)^{99999}",
        "((999!)!)!",
        "5!!",
        "\\log^{9999} 7",
        "(x+y+z)^{99}",
        "(99 \\cdot 99)!",
        "\\binom{10^9}{500000000}",
        "\\binom{999999999}{499999999}",
        "\\int_0^1 e^{\\sin(x^2)} dx",
        "\\prod_{i=1}^{9999} \\sum_{j=1}^{i} i^j",
    ],
)
def test_a_computation_without_end_is_wrong_at_once(answer):
    """SymPy would compute 2 to the power 10^12 in C code that no signal interrupts."""
    began = time.thread_time()
    assert grade(boxed_math, f"\\boxed{{{answer}}}", "1") == 0.0
    assert time.thread_time() - began < 1
    assert grade(boxed_math, f"\\boxed{{{answer}}}", answer) == 1.0


@pytest.mark.parametrize("huge", ["10^{10^{10}}", "9^9^9", "2^{1000000000}", "2^1000000000", "123456!", "(10^{9})!"])
def test_what_cannot_be_computed_is_compared_as_text(huge):
    assert grade(boxed_math, f"\\boxed{{{huge}}}", huge.replace("9", "8")) == ("9" not in huge)
    assert grade(boxed_math, f"\\boxed{{{huge}}}", "7") == 0.0
