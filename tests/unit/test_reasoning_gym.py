"""Tasks of reasoning-gym as data and as reward, and our Countdown reward against that package's."""

import ast
import itertools
import random
import re
import time
from functools import cache
from pathlib import Path

import pytest
import reasoning_gym as package
from hypothesis import given, settings
from hypothesis import strategies as st
from reasoning_gym.factory import DATASETS

from eggroll_rl.config import DataConfig, RewardConfig
from eggroll_rl.data.dataset import load_data
from eggroll_rl.data.generated import in_test_split
from eggroll_rl.data.gym import PREFIX, REFUSED, ReasoningGym
from eggroll_rl.rewards.countdown import is_solution
from eggroll_rl.rewards.reasoning_gym import (
    ALGEBRA,
    ARITHMETIC,
    EVALUATED,
    has_form,
    is_brief,
    is_harmless,
    reasoning_gym,
)
from eggroll_rl.scoring import Scorer
from eggroll_rl.system.errors import UsageError

TASKS = ["chain_sum", "countdown", "n_queens", "simple_integration", "spiral_matrix", "syllogism", "acre"]
EVALUATORS = {"eval", "exec", "compile", "parse_expr", "sympify", "parse_latex", "S", "load", "loads"}
FORMULAS = ["countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24", "simple_integration"]


def source(task, split="train", **options):
    return ReasoningGym(DataConfig(name=PREFIX + task, options=options), split)


def grade(rows, answers):
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return reasoning_gym(["" for _ in rows], [f"so <answer>{answer}</answer>" for answer in answers], **columns)


# Data.


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_asked_and_solved(task):
    rows = [source(task)[index] for index in range(3)]
    assert rows == [source(task)[index] for index in range(3)]
    for row in rows:
        assert row["question"].strip() in row["prompt"]
    answers = [row["metadata"]["valid_answers"][0] if task == "n_queens" else row["answer"] for row in rows]
    assert grade(rows, answers) == [1.0] * 3
    assert all(reward < 0.5 for reward in grade(rows, ["certainly not"] * 3))


def test_splits_share_no_question():
    train, test = (
        source("chain_sum", min_terms=2, max_terms=2, min_digits=1, max_digits=1),
        source("chain_sum", "test", min_terms=2, max_terms=2, min_digits=1, max_digits=1),
    )
    asked = {train[index]["question"] for index in range(200)}
    held_out = [test[index]["question"] for index in range(8)]
    assert len(set(held_out)) == 8
    assert not asked & set(held_out)
    assert all(map(in_test_split, held_out)) and not any(map(in_test_split, asked))


def test_a_small_task_says_how_much_it_holds():
    few = source("chain_sum", "test", min_terms=2, max_terms=2, min_digits=1, max_digits=1)
    with pytest.raises(UsageError, match=r"reasoning-gym:chain_sum holds only \d+ held-out problems"):
        few[10_000]


def test_batches_follow_generation_and_seed():
    config = DataConfig(name="reasoning-gym:chain_sum", prompts=3)
    data, other = load_data(config, seed=0), load_data(config, seed=1)
    assert data.columns == ["prompt", "question", "answer", "metadata", "options"]
    assert data.batch(4) == load_data(config, seed=0).batch(4)
    prompts = [*data.batch(0).prompts, *data.batch(1).prompts, *other.batch(0).prompts]
    assert len(set(prompts)) == 9


@pytest.mark.parametrize(
    ("task", "options", "expected"),
    [
        ("chain_summ", {}, "no task 'chain_summ'; did you mean reasoning-gym:chain_sum"),
        ("chain_sum", {"terms": 3}, "data.options={'terms': 3} do not fit reasoning-gym:chain_sum"),
        ("chain_sum", {"min_terms": 0}, "do not fit reasoning-gym:chain_sum: min_terms must be positive"),
        ("codeio", {}, "codeio is not offered: it executes collected programs"),
    ],
)
def test_mistakes(task, options, expected):
    with pytest.raises(UsageError) as error:
        source(task, **options)
    assert expected in str(error.value)


# The reward.


def test_options_reach_the_judge():
    """puzzle24 rejects numbers outside its range, which is an option."""
    item = {"answer": ["8*3*1*1"], "metadata": [{"source_dataset": "puzzle24"}]}
    assert reasoning_gym([""], ["8*3*1*1"], **item) == [1.0]
    assert reasoning_gym([""], ["8*3*1*1"], **item, options=[{"max_value": 6}]) == [0.01]


def test_partial_rewards_are_the_tasks_own():
    row = source("countdown")[0]
    wrong = " + ".join(map(str, row["metadata"]["numbers"]))
    assert grade([row], [wrong]) == [0.05]
    assert reasoning_gym([""], [row["answer"]], answer=[row["answer"]], metadata=[row["metadata"]]) == [1.0]


def test_judges_that_raise_give_nothing():
    row = source("prime_factorization")[0]
    assert grade([row], ["zzz"]) == [0.0]


def test_a_run_can_use_the_reward():
    batch = load_data(DataConfig(name="reasoning-gym:spiral_matrix", prompts=2), seed=0).batch(0)
    right = [f"<answer>{answer}</answer>" for answer in batch.columns["answer"]]
    with Scorer([RewardConfig(fn="eggroll_rl.rewards.reasoning_gym:reasoning_gym")]) as scorer:
        scorer.probe(batch.prompts, batch.columns)
        scores = scorer([right, ["no", "no"]], batch.prompts, batch.columns)
    assert scores.rewards_NP.tolist() == [[1.0, 1.0], [0.0, 0.0]]


def attacks(mark: Path) -> list[str]:
    """Each makes the file if Python evaluates it."""
    touch = f"__import__('pathlib').Path('{mark}').touch()"
    letters = "+".join(f"chr({ord(letter)})" for letter in touch)
    return [touch, f"[{touch}]", f"eval({letters})", f"exec({letters})", f"(lambda: {touch})()", f"x if {touch} else 1"]


def test_attacks_are_real(tmp_path):
    for number, attack in enumerate(attacks(tmp_path / "mark")):
        eval(attack, {"x": 1})
        assert (tmp_path / "mark").exists(), number
        (tmp_path / "mark").unlink()


@pytest.mark.parametrize("task", sorted((EVALUATED | ARITHMETIC | ALGEBRA) - {"intermediate_integration"}))
def test_no_answer_is_executed(tmp_path, task):
    row, mark = source(task)[0], tmp_path / "mark"
    for attack in attacks(mark):
        assert not is_harmless(task, attack)
        assert grade([row], [attack])[0] < 0.1
        assert not mark.exists()


@pytest.mark.parametrize(
    "answer", ["9**9", "9 * * 9", "x", "eval(1)", "1_0", "1e9", "(1).real", "2!", "[1]", "a" * 501]
)
def test_arithmetic_is_numbers_and_four_operators(answer):
    assert not is_harmless("countdown", answer)


@pytest.mark.parametrize("answer", ["9**9**9", "2**(3**4)", "x.real", "chr(1)", "S('1')", "x**100", "x**2**2", "x__y"])
def test_algebra_has_small_powers_and_known_functions(answer):
    assert not is_harmless("simple_integration", answer)


@pytest.mark.parametrize("answer", ["x**2/2 + C", "-3*sin(2*x) + 7*exp(x)/2", "x**(3/2)", "2*a**2*b - 1.5", "log(x)"])
def test_algebra_keeps_what_integrals_need(answer):
    assert is_harmless("simple_integration", answer)


@pytest.mark.parametrize("task", FORMULAS)
def test_every_solution_is_harmless(task):
    for index in range({"puzzle24": 1, "intermediate_integration": 3}.get(task, 10)):  # those are slow
        solution = source(task)[index]["answer"]
        assert solution is None or is_harmless(task, solution), solution


def test_the_judges_that_evaluate_are_those_known():
    """A release of reasoning-gym with another one must be looked at."""
    found = set()
    for path in Path(package.__file__).parent.rglob("*.py"):
        code = path.read_text(encoding="utf-8")
        tree = ast.parse(code if "def score_answer" in code else "")
        judges = [node for node in ast.walk(tree) if getattr(node, "name", "") == "score_answer"]
        for call in (node for judge in judges for node in ast.walk(judge) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            if name != "json.loads" and name.rpartition(".")[2] in EVALUATORS:
                found.add(path.stem)
    assert found - {"number_sorting"} == EVALUATED | ARITHMETIC | ALGEBRA  # that one evaluates its own solution


# The form of an answer.

OFFERED = sorted(set(DATASETS) - set(REFUSED))
JUNK = [
    *("", " ", "x", "nan", "-inf", "Infinity", "٢٤", "1_0", "1e999", "9" * 400, "0x10", "²", "1/0", "0.", "-", ","),
    *("True", "False", "yes", "no", "None", "null", "[]", "{}", "[[]]", "0 0 0", "1\n2\n3", "[1, 2, 3]", '{"a": 1}'),
    *("a" * 600, "\0", "🙂", "<b>x</b>", "certainly not", "ERROR", "impossible", "12:30", "\\boxed{1}", "(" * 50),
    *("U99 " * 200, "F+99 " * 200, "U999999999", "F+999999999", "1+" * 300 + "1", "x**99*exp(x)*sin(x)", "P v Q"),
]
TRIMMED = {"futoshiki", "survo"}  # their own answers end on spaces, which an answer block loses


@cache
def items(task):
    data = package.create_dataset(task, size=3, seed=1)
    return [data[index] for index in range(3)]


def judged(item, answer):
    columns = {name: [item[name]] for name in ("question", "answer", "metadata")}
    return reasoning_gym([""], [f"<answer>{answer}</answer>"], **columns)[0]


def is_another_spelling(answer, solution):
    """Whether the two may well mean the same."""
    try:
        return float(answer) == float(solution)
    except ValueError:
        return answer.strip().casefold() == solution.strip().casefold()


@cache
def best_of_junk(task):
    """The highest reward for an answer that is not the task's own, and the seconds of the slowest."""
    best, slowest = 0.0, 0.0
    for item, answer in itertools.product(items(task), JUNK):
        began = time.thread_time()
        reward = judged(item, answer)
        slowest = max(slowest, time.thread_time() - began)
        if not is_another_spelling(answer, item["answer"] or ""):
            best = max(best, reward)
    return best, slowest


@pytest.mark.parametrize("task", OFFERED)
def test_a_tasks_own_answer_is_judged_as_by_the_task(task):
    for item in items(task):
        if item["answer"] is not None:
            theirs = package.get_score_answer_fn(task)(item["answer"].strip(), item)
            assert judged(item, item["answer"]) == theirs
            assert theirs == 1.0 or task in TRIMMED


@pytest.mark.parametrize("task", OFFERED)
def test_no_task_takes_junk_for_right_or_long(task):
    best, slowest = best_of_junk(task)
    assert best < 1.0
    assert slowest < 2.0


def test_the_documentation_names_the_tasks_that_reward_junk():
    page = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")
    named = re.search(r"<!-- tasks that reward junk -->\n(.*?)\n\n", page, re.DOTALL)
    assert named is not None
    found = [task for task in OFFERED if best_of_junk(task)[0] > 0.1]
    assert re.findall(r"`(\w+)`", named[1]) == found


@pytest.mark.parametrize(
    ("solution", "answers"),
    [
        ("42", ["42", " 42 ", "-42", "+42", "42.0", "$1,042", "42%", "1/2", "4e2", ".5"]),
        ("True", ["True", "true", " TRUE\n"]),
        ("Yes", ["Yes", "yes"]),
        ("hello", ["world", "nan", "4 2", "x" * 500]),
        ("3 4", ["1 2 3", "x", "0.5"]),
        (None, ["U R2", "F+1", "[]"]),
        ("", ["", " ", "x"]),
    ],
)
def test_answers_of_the_form(solution, answers):
    for answer in answers:
        assert has_form(answer, solution), answer


@pytest.mark.parametrize(
    ("solution", "answers"),
    [
        ("42", ["", "x", "nan", "inf", "٤٢", "4_2", "4²", "42 apples", "42, 43", "4 2", "0x2a", "9" * 30, "1e9999"]),
        ("True", ["False", "x", "", "1", "True False", "yes"]),
        ("No", ["Yes", "none", "0"]),
        ("hello", ["", "x" * 501, "٤"]),
        ("3 4", ["nan nan", "٣ ٤", "1_0 4", "  "]),
        (None, ["", "U999", "nan", "x" * 501]),
    ],
)
def test_answers_of_another_form(solution, answers):
    for answer in answers:
        assert not has_form(answer, solution), answer


@given(st.text() | st.integers().map(str) | st.floats(allow_nan=False, allow_infinity=False).map(str))
def test_every_answer_has_its_own_form(text):
    assert has_form(text, text)


def test_a_wrong_literal_and_a_far_number_are_wrong():
    item = items("game_of_life_halting")[0]
    right = item["answer"]
    assert judged(item, right) == judged(item, right.lower()) == 1.0
    assert judged(item, str(right != "True")) == judged(item, "certainly") == judged(item, "0") == 0.0
    item = items("coin_flip")[0]
    assert judged(item, item["answer"]) == 1.0
    assert judged(item, "0") == judged(item, "0.") == judged(item, item["answer"][:3]) == 0.0
    assert judged(items("complex_arithmetic")[0], "nan") == 0.0


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([task for task in OFFERED if task not in ALGEBRA]), st.text(max_size=300))
def test_any_text_is_judged_at_once(task, text):
    item = items(task)[0]
    began = time.thread_time()
    assert 0.0 <= judged(item, text) <= 1.0
    assert time.thread_time() - began < 2.0


@pytest.mark.parametrize("answer", ["x**13", "x*" * 100 + "x", "exp(exp(exp(exp(x))))", "sin(x)*cos(x)*tan(x)*exp(x)"])
def test_formulas_beyond_the_own_are_not_compared(answer):
    assert not is_brief(answer, "x**2/2 + exp(x) + C")


# Countdown, by two implementations.


def countdown_answers(count: int) -> list[tuple[str, list[int], int]]:
    """Right and wrong answers over small numbers: (expression, numbers, target)."""
    rng, cases = random.Random(0), []
    while len(cases) < count:
        numbers = [rng.randint(1, 20) for _ in range(rng.randint(2, 4))]
        parts = [str(number) for number in rng.sample(numbers, len(numbers))]
        while len(parts) > 1:
            left, right = parts.pop(rng.randrange(len(parts))), parts.pop(rng.randrange(len(parts)))
            inner, operator = rng.choice(["", " "]), rng.choice("+-*/")
            parts.append(rng.choice(["({})", "-({})", "({})"]).format(f"{left}{inner}{operator}{inner}{right}"))
        try:
            value = eval(parts[0])
        except ZeroDivisionError:
            continue
        target = round(value) if rng.random() < 0.6 else rng.randint(1, 100)
        numbers = rng.choice([numbers, numbers, numbers, [*numbers[1:], numbers[0] + 1], numbers[1:]])
        cases.append((parts[0], numbers, target))
    return cases


def test_countdown_agrees_with_reasoning_gym():
    judge = package.get_score_answer_fn("countdown")
    right = 0
    for expression, numbers, target in countdown_answers(1000):
        item = {"question": "", "answer": "", "metadata": {"numbers": numbers, "target": target}}
        ours, theirs = is_solution(expression, numbers, target), judge(expression, item) == 1.0
        assert ours == theirs, (expression, numbers, target)
        right += ours
    assert 150 < right < 850


@pytest.mark.parametrize(
    ("expression", "numbers", "target", "ours", "theirs"),
    [
        ("4 * 6 = 24", [4, 6], 24, True, False),  # the value repeated after an equals sign
        ("4 × 6", [4, 6], 24, True, False),  # noqa: RUF001
        ("2 ** 3", [2, 3], 8, False, True),  # powers
        ("+4 * 6", [4, 6], 24, False, True),  # a sign in front
        ("4*6 + x - x", [4, 6], 24, False, True),  # symbols that cancel
        ("400000 * 600001", [400000, 600001], 240000000001, False, True),  # within a relative 1e-5
    ],
)
def test_where_the_two_differ_on_countdown(expression, numbers, target, ours, theirs):
    item = {"question": "", "answer": "", "metadata": {"numbers": numbers, "target": target}}
    assert is_solution(expression, numbers, target) is ours
    assert (package.get_score_answer_fn("countdown")(expression, item) == 1.0) is theirs
