"""Tasks of the package reasoning-gym (the extra ``reasoning-gym``), judged by their own ``score_answer``.

A few of its judges hand the answer to Python's ``eval``, or to SymPy, which does. Text written by a model is never
executed here: to those judges goes only what is plain data or plain algebra. Many take what Python's ``float``, ``int``
and ``bool`` take, such as ``nan``, ``1_0`` and any text at all: no judge sees an answer that has not the form of the
task's own (`has_form`).
"""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from fractions import Fraction
from functools import cache
from typing import Any

from .text import Messages, answer_text, text_of

try:  # at the top, so that the import is no part of a call's time
    import reasoning_gym as package
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"{error}; pip install 'eggroll-rl[reasoning-gym]'", name=error.name) from error

MAX_LENGTH = 500  # characters of an answer; where it is more, 4 times the length of the task's own
MAX_DIGITS = 20  # in a row, more than in the task's own answer; where a task has none, an answer is a list of moves:
MAX_COUNT = 2
MAX_EXPONENT = 12
TOLERANCE = 0.005  # relative: tasks that round keep three digits
LITERALS = {"true", "false", "yes", "no"}
EVALUATED = {"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"}  # judged by eval
ARITHMETIC = {"countdown", "puzzle24"}  # by SymPy's parse_expr; without powers
ALGEBRA = {"intermediate_integration", "polynomial_multiplication", "simple_integration"}  # by SymPy's parse_expr

_NUMBER = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?")
_FIGURE = re.compile(r"[-+]?\$?(?:[0-9][0-9,]*(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3}|/[0-9]+)?\$?%?")
_PYTHON = re.compile(r"(?<![a-z])(?:nan|inf|infinity)(?![a-z])|[0-9]_[0-9]", re.IGNORECASE)
_WORDS = re.compile(r"[\w\s]*")
_SUM = re.compile(r"(?:[0-9]{1,12}(?:\.[0-9]{1,12})?|[\s+\-/()]|\*(?!\s*\*))*")
_FUNCTION = "sin|cos|tan|sec|csc|cot|asin|acos|atan|sinh|cosh|tanh|exp|log|ln|sqrt|Abs|pi"
_POWER = r"\*\*\s*(?:[0-9]{1,2}|\(\s*-?\s*[0-9]{1,2}(?:\s*/\s*[0-9]{1,2})?\s*\)|[a-zA-Z])(?![\w.]|\s*(?:\*\*|\())"
_EXPONENT = re.compile(r"\*\*[\s(-]*([0-9]+)")
_CALL = re.compile(rf"(?:{_FUNCTION})\b")
_FORMULA = re.compile(
    rf"(?:[0-9]{{1,12}}(?:\.[0-9]{{1,12}})?(?![\w.])|(?<![\w.])(?:{_FUNCTION}|[a-zA-Z])(?![\w.])"
    rf"|[\s+\-/()]|{_POWER}|\*(?!\s*\*))*"
)


def reasoning_gym(
    prompts: Sequence[str | Messages],
    completions: Sequence[str | Messages],
    *,
    answer: Sequence[Any],
    metadata: Sequence[Mapping[str, Any]],
    question: Sequence[str] | None = None,
    options: Sequence[Mapping[str, Any]] | None = None,
    **columns: Any,
) -> list[float]:
    """The task's own score, from 0.0 to 1.0, of the last ``<answer>`` block, or of the completion if there is none.

    Tasks give partial rewards of their own, such as 0.01 for any text; exactly 1.0 is right. An answer that has not the
    form of the task's own gets 0.0, as does a number that a task takes for right though it is off by more than 0.5 %.

    Args:
        answer: a column of an item of reasoning-gym.
        metadata: a column of an item; its ``source_dataset`` names the task.
        question: a column of an item.
        options: a column, the task's configuration where it is not the default.
    """
    rewards = []
    for index, (completion, solution, facts) in enumerate(zip(completions, answer, metadata, strict=True)):
        item = {"question": question[index] if question else "", "answer": solution, "metadata": dict(facts)}
        rewards.append(_score(completion, item, options[index] if options else {}))
    return rewards


def is_harmless(task: str, answer: str) -> bool:
    """Whether the judge of ``task`` may see ``answer``: False where it would evaluate more than data or algebra."""
    if task in EVALUATED:
        return len(answer) <= MAX_LENGTH and (_WORDS.fullmatch(answer) is not None or _is_literal(answer))
    if task in ARITHMETIC | ALGEBRA:
        grammar = _SUM if task in ARITHMETIC else _FORMULA
        return len(answer) <= MAX_LENGTH and grammar.fullmatch(answer) is not None
    return True


def is_brief(answer: str, solution: str) -> bool:
    """Whether SymPy can be expected to compare the two soon: ``answer`` is not much larger than ``solution``."""
    return (
        len(answer) <= 40 + 3 * len(solution)
        and _largest_power(answer) <= max(MAX_EXPONENT, _largest_power(solution))
        and len(_CALL.findall(answer)) <= 2 + len(_CALL.findall(solution))
    )


def _largest_power(formula: str) -> int:
    return max(map(int, _EXPONENT.findall(formula)), default=0)


def has_form(answer: str, solution: str | None) -> bool:
    """Whether ``answer`` has the form of the task's own ``solution`` (None: the task has none).

    A number is answered by a number, ``True`` and ``Yes`` by themselves, anything by something. No answer is much
    longer, counts in digits that are not ASCII, or writes numbers as only Python does (``nan``, ``inf``, ``1_0``).
    """
    own = solution or ""
    if len(answer) > max(MAX_LENGTH, 4 * len(own)) or (not answer.strip() and (solution is None or own.strip() != "")):
        return False
    digits = MAX_COUNT if solution is None else MAX_DIGITS + _longest_count(own)
    if _longest_count(answer) > digits or (_odd_digits(answer) and not _odd_digits(own)):
        return False
    if _PYTHON.search(answer) and not _PYTHON.search(own) and (solution is None or any(map(str.isdigit, own))):
        return False
    if own.casefold() in LITERALS:
        return answer.strip().casefold() == own.casefold()
    return _NUMBER.fullmatch(own) is None or _FIGURE.fullmatch(answer.strip()) is not None


def _longest_count(text: str) -> int:
    return max(map(len, re.findall("[0-9]+", text)), default=0)


def _odd_digits(text: str) -> bool:
    return any(character.isdecimal() and not character.isascii() for character in text)


def _is_far(answer: str, solution: str | None) -> bool:
    """Whether both are numbers that differ by more than the tolerance."""
    if solution is None or not (_NUMBER.fullmatch(solution) and _FIGURE.fullmatch(answer.strip())):
        return False
    try:
        value, goal = Fraction(re.sub("[$%,]", "", answer.strip())), Fraction(solution)
    except ZeroDivisionError:
        return True
    return abs(value - goal) > TOLERANCE * abs(goal)


def _score(completion: str | Messages, item: dict[str, Any], options: Mapping[str, Any]) -> float:
    answer = answer_text(completion)
    if answer is None:
        answer = text_of(completion).strip()
    task = item["metadata"]["source_dataset"]
    solution = None if item["answer"] is None else str(item["answer"])
    if not is_harmless(task, answer) or not has_form(answer, solution):
        return 0.0
    if task in ALGEBRA and not is_brief(answer, solution or ""):
        return 0.0
    judge = _judge(task, json.dumps(dict(options), sort_keys=True))
    try:
        score = float(judge(answer, deepcopy(item)))
    except Exception:  # judges of the package raise all kinds of errors on text that they cannot read
        return 0.0
    return 0.0 if score == 1.0 and _is_far(answer, solution) else score


@cache
def _judge(task: str, options: str) -> Any:
    return package.create_dataset(task, **{"size": 1, "seed": 0, **json.loads(options)}).score_answer


def _is_literal(text: str) -> bool:
    try:
        ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return False
    return True
