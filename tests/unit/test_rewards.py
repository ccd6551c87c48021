"""Rewards against independent references, and against answers that mean harm."""

import ast
import itertools
import operator
import re
import time
import warnings
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eggroll_rl.rewards import countdown as graded
from eggroll_rl.rewards.countdown import countdown, countdown_with_format, evaluate_expression, is_solution
from eggroll_rl.rewards.text import answer_text, exact_match, text_of, think_format

OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
NODES = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
MEGABYTE = 10**6

HOSTILE = {
    "power tower": "44**19**35",
    "import": "__import__('os').system('true')",
    "division by zero": "1/0",
    "nested zero": "24/(3-3)",
    "floor division": "49//2",
    "parentheses": "(" * 10_000 + "24" + ")" * 10_000,
    "signs": "-" * 10_000 + "24",
    "digits": "9" * MEGABYTE,
    "unicode digits": "٢٤",
    "superscript": "24²",
    "underscore": "2_4",
    "hexadecimal": "0x18",
    "adjacent": "2 4",
    "leading zero": "024",
    "chained equality": "24=24=24",
    "comparison": "24==24",
    "wrong right side": "24=25",
    "computed right side": "24=12+12",
    "zero right side": "24=24/0",
    "nul": "24\0",
    "decimal": "24.0",
    "exponent": "24e0",
    "call": "(24)(24)",
    "tuple": "24,",
    "empty": "",
    "plus sign": "+24",
    "unclosed": "(24",
    "unopened": "24)",
    "equals": "=" * 10_000,
    "lone surrogate": "24\ud800",
    "spaces": " " * MEGABYTE + "x",
}


def answered(text):
    return f"<think>so</think>\n<answer>{text}</answer>"


def grade(completion, numbers=(24,), target=24):
    return countdown([""], [completion], numbers=[numbers], target=[target])[0]


def enumerate_expressions(numbers):
    """All (text, value) over the numbers in this order; the value is None where it divides by zero."""
    if len(numbers) == 1:
        yield str(numbers[0]), Fraction(numbers[0])
        return
    for cut in range(1, len(numbers)):
        for left, a in enumerate_expressions(numbers[:cut]):
            for right, b in enumerate_expressions(numbers[cut:]):
                for sign, apply in OPERATORS.items():
                    defined = a is not None and b is not None and not (sign == "/" and b == 0)
                    yield f"({left} {sign} {right})", apply(a, b) if defined else None


def reference_value(text):
    """The value by Python's own parser, restricted to Countdown's grammar; None where the text is outside it."""

    def walk(node):
        match node:
            case ast.Expression():
                return walk(node.body)
            case ast.BinOp() if type(node.op) in NODES:
                return NODES[type(node.op)](walk(node.left), walk(node.right))
            case ast.UnaryOp(op=ast.USub()):
                return -walk(node.operand)
            case ast.Constant(value=int(value)) if not isinstance(value, bool):
                return Fraction(value)
        raise ValueError("not arithmetic")

    if re.search(r"(?<![0-9])0[0-9]|[0-9]{13}", text):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            return walk(ast.parse(text.strip(), mode="eval"))
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


def value_or_none(text):
    try:
        return evaluate_expression(text)
    except ValueError:
        return None


def test_every_expression_over_three_numbers_is_graded_like_brute_force():
    numbers, solutions = (2, 3, 6), 0
    for order in itertools.permutations(numbers):
        for text, value in enumerate_expressions(order):
            assert value_or_none(text) == value
            for target in (12, 4, "1/4", -1):
                assert is_solution(text, numbers, target) == (value == Fraction(target))
                solutions += value == Fraction(target)
    assert solutions > 20


@settings(max_examples=400, deadline=None)
@given(st.text(alphabet="0123456789+-*/() ", max_size=24))
@example("-(3 - -5)*2/7")
@example("1 -2- 3")
@example("8/4/2")
@example("2 ** 3")
def test_the_parser_agrees_with_pythons(text):
    assert value_or_none(text) == reference_value(text)


trees = st.recursive(
    st.integers(0, 99).map(str),
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner, st.booleans()).map(
        lambda t: f"({t[0]}{t[1]} {t[2]})" if t[3] else f"{t[0]} {t[1]}{t[2]}"
    ),
    max_leaves=8,
)


@settings(max_examples=250, deadline=None)
@given(trees)
def test_valid_expressions_have_pythons_value(text):
    assert value_or_none(text) == reference_value(text)


@settings(max_examples=250, deadline=None)
@given(st.text() | st.text(alphabet="0123456789+-*/()= \0_.x<>answer", max_size=300))
def test_no_answer_raises_or_is_slow(text):
    began = time.thread_time()
    for completion in (text, answered(text), [{"role": "assistant", "content": text}]):
        assert grade(completion, (3, 4), 7) in (0.0, 1.0)
        assert think_format([""], [completion])[0] in (0.0, 0.1, 0.5, 0.6, 1.0)
    assert time.thread_time() - began < 0.05


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answers_score_zero_at_once(name):
    assert grade(answered("24")) == 1.0
    began = time.thread_time()
    assert grade(answered(HOSTILE[name])) == 0.0
    assert not is_solution(HOSTILE[name], [24], 24)
    assert time.thread_time() - began < 0.05


@pytest.mark.parametrize(
    "completion",
    [
        "<answer>" * 100_000,
        "</answer>" * 100_000,
        "</answer><answer>" * 60_000,
        "<answer></answer>" * 60_000,
        "<answer" * 140_000,
        "<think>" * 140_000 + "</answer>",
        "<think>" + "</think>\n<answer" * 60_000,
    ],
)
def test_megabytes_of_tags_score_zero_at_once(completion):
    began = time.thread_time()
    assert grade(completion) == 0.0
    assert think_format([""], [completion])[0] < 1.0
    assert time.thread_time() - began < 0.05


@pytest.mark.parametrize(
    "text", ["(" * 21 + "1" + ")" * 21, "1+" * 100 + "1", "1234567890123", "01", "3 4", "3=3", "1/(2-2)"]
)
def test_limits_of_the_parser(text):
    with pytest.raises(ValueError):
        evaluate_expression(text)


def test_just_within_the_limits():
    assert evaluate_expression("(" * graded.MAX_DEPTH + "1" + ")" * graded.MAX_DEPTH) == 1
    assert evaluate_expression("1+" * 99 + "11") == 110
    assert evaluate_expression("999999999999") == 10**12 - 1


@pytest.mark.parametrize(
    ("text", "numbers", "target"),
    [
        ("3*8", [3, 8], 24),
        (" ( 3 ) *\n8 ", [8, 3], 24),
        ("3 × 8", [3, 8], 24),  # noqa: RUF001
        ("7÷2", [2, 7], "7/2"),
        ("3−10", [3, 10], -7),  # noqa: RUF001
        ("3*8 = 24", [3, 8], 24),
        ("3-10 = −7", [3, 10], -7),  # noqa: RUF001
        ("7/2 = 3.5", [2, 7], 3.5),
        ("7/2 = 7/2", [2, 7], "7/2"),
        ("-3+10", [3, 10], 7),
        ("10/3", [3, 10], 3.3333333),
        ("10/3", [3, 10], "10/3"),
        ("10/3", [3, 10], Fraction(10, 3)),
        ("3*8", [3, 8], 24.0),
        ("3*8", [3, 8], "24"),
        ("3*3", [3, 3], 9),
        ("0*5", [0, 5], 0),
    ],
)
def test_correct_answers(text, numbers, target):
    assert is_solution(text, numbers, target)


@pytest.mark.parametrize(
    ("text", "numbers", "target"),
    [
        ("3*8", [3, 8, 1], 24),  # one left out
        ("3*8*1", [3, 8], 24),  # one too many
        ("3*8", [3, 3, 8], 24),  # a repeated number used once
        ("24", [3, 8], 24),
        ("24 = 3*8", [3, 8], 24),
        ("38-14", [3, 8, 1, 4], 24),  # joined digits
        ("3*8 =", [3, 8], 24),
        ("3*8 = 23", [3, 8], 24),
        ("10/3", [3, 10], 3.3333),  # further than 1e-5
        ("10/3", [3, 10], 3),
        ("3*8", [3, 8], -24),
    ],
)
def test_wrong_answers(text, numbers, target):
    assert not is_solution(text, numbers, target)


def test_a_target_that_is_no_number_is_loud():
    with pytest.raises(ValueError):
        is_solution("3*8", [3, 8], "many")


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("<answer>1</answer> no: <answer> 2 </answer> done", "2"),
        ("<answer>1<answer>2</answer>", "2"),
        ("<answer>1</answer></answer>", "1"),
        ("<answer>1</answer> or <answer>2", "1"),
        ("<answer></answer>", ""),
        ("</answer><answer>", None),
        ("<answer>1", None),
        ("24", None),
        ([{"role": "assistant", "content": "<answer>3</answer>"}], "3"),
        ([{"role": "assistant", "content": None}], None),
        ([], None),
    ],
)
def test_the_last_answer_counts(completion, answer):
    assert answer_text(completion) == answer


def published_format(text):
    if re.match(r"^<think>.*?</think>\n<answer>.*?</answer>$", text, re.DOTALL):
        return 1.0
    blocks = (re.search(rf"<{tag}>.*?</{tag}>", text, re.DOTALL) is not None for tag in ("think", "answer"))
    return sum(value * found for value, found in zip((0.1, 0.5), blocks, strict=True))


PIECES = st.sampled_from(["<think>", "</think>", "\n", "<answer>", "</answer>", "x", "</think>\n<answer>"])


@settings(max_examples=400, deadline=None)
@given(st.lists(PIECES, max_size=7).map("".join) | st.lists(PIECES, max_size=3).map(lambda p: answered("".join(p))))
def test_format_agrees_with_the_published_expressions(text):
    assert think_format([""], [text]) == [published_format(text)]


def test_a_prompt_may_open_the_thinking():
    rest = "so</think>\n<answer>1</answer>"
    assert think_format(["Show your work. <think>", "Show your work."], [rest, rest]) == [1.0, 0.5]
    assert think_format([[{"role": "assistant", "content": "<think>\n"}]], [rest]) == [1.0]


def test_format_adds_a_tenth():
    completions = [answered("3*8"), answered("3+8"), "<answer>3*8</answer>", "3*8"]
    rewards = countdown_with_format([""] * 4, completions, numbers=[[3, 8]] * 4, target=[24] * 4)
    assert rewards == pytest.approx([1.1, 0.1, 1.05, 0.0])


def test_exact_match_ignores_whitespace_and_rows_without_an_answer():
    completions = ["<answer> a\n b </answer>", "a  b", "a b c", "a", "anything", "", "<answer>7</answer>"]
    expected = ["a b", "a b", "a b", "a b", None, "", 7]
    assert exact_match([""] * 7, completions, answer=expected) == [1.0, 1.0, 0.0, 0.0, None, 1.0, 1.0]


def test_text_of_messages_is_the_last_content():
    messages = [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert (text_of("a"), text_of(messages), text_of([])) == ("a", "b", "")
