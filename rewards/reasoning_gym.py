"""Tasks of the package reasoning-gym (the extra ``reasoning-gym``), judged by their own ``score_answer``.

A few of its judges hand the answer to Python's ``eval``, or to SymPy, which does. Text written by a model is never
executed here: to those judges goes only what is plain data or plain algebra.
"""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache
from typing import Any

from .text import Messages, answer_text, text_of

try:  # here, so that the import does not count as the time of an answer
    import reasoning_gym as package
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"{error}; pip install 'eggroll-rl[reasoning-gym]'", name=error.name) from error

MAX_LENGTH = 500  # characters of an answer that such a judge gets
EVALUATED = {"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"}  # judged by eval
ARITHMETIC = {"countdown", "puzzle24"}  # by SymPy's parse_expr; without powers
ALGEBRA = {"intermediate_integration", "polynomial_multiplication", "simple_integration"}  # by SymPy's parse_expr

_WORDS = re.compile(r"[\w\s]*")
_SUM = re.compile(r"(?:[0-9]{1,12}(?:\.[0-9]{1,12})?|[\s+\-/()]|\*(?!\s*\*))*")
_FUNCTION = "sin|cos|tan|sec|csc|cot|asin|acos|atan|sinh|cosh|tanh|exp|log|ln|sqrt|Abs|pi"
_POWER = r"\*\*\s*(?:[0-9]{1,2}|\(\s*-?\s*[0-9]{1,2}(?:\s*/\s*[0-9]{1,2})?\s*\)|[a-zA-Z])(?![\w.]|\s*(?:\*\*|\())"
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
    """What the task gives the last ``<answer>`` block, or the completion where there is none: from 0.0 to 1.0.

    Tasks give partial rewards of their own, such as 0.01 for any text; exactly 1.0 is right.

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


def _score(completion: str | Messages, item: dict[str, Any], options: Mapping[str, Any]) -> float:
    answer = answer_text(completion)
    if answer is None:
        answer = text_of(completion).strip()
    task = item["metadata"]["source_dataset"]
    if not is_harmless(task, answer):
        return 0.0
    judge = _judge(task, json.dumps(dict(options), sort_keys=True))
    try:
        return float(judge(answer, deepcopy(item)))
    except Exception:  # many a judge of the package raises on text that it cannot read, whatever comes to hand
        return 0.0


@cache
def _judge(task: str, options: str) -> Any:
    return package.create_dataset(task, **{"size": 1, "seed": 0, **json.loads(options)}).score_answer


def _is_literal(text: str) -> bool:
    try:
        ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return False
    return True
