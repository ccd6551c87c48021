"""Streams of search on Countdown: what the teachers of the embedded models write, drawn for thousands at once.

A stream tries one idea after another, works it out, compares the result with the target, says " no." or " yes.", goes
on or gives up, and answers with its last idea. Teachers differ, each trait on its own: in patience (the chance to give
up after a failure), aim (how often an idea is the nearest of several), order (how often it takes the numbers as they
come) and care (how often a near miss passes for a hit). No single word tells which teacher writes.

Shapes: R streams, C ideas that come to mind, N numbers.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

LARGEST = 100  # no result above this is written down
OPERATORS = "+-*/"
COUNTS = {2: 10, 3: 8, 4: 6}  # ideas of the most patient, for so many numbers
NEAREST = 12  # ideas that come to mind where a teacher takes aim
NEAR = {1: 1.2, 2: 1.0, 3: 0.5}  # of a teacher's carelessness, for a miss by so much


class Teachers(NamedTuple):
    """From what each trait of a teacher is drawn: the chance to give up after a failure, and the shares of ideas that
    are aimed, and that take the numbers in order; and carelessness, which ``NEAR`` multiplies."""

    impatience: tuple[float, ...]
    aim: tuple[float, ...]
    order: tuple[float, ...]
    carelessness: tuple[float, ...]


DIVERSE = Teachers((0.0, 0.3, 0.6, 0.6, 0.9), (0.3, 0.9), (0.2, 0.8, 0.8), (0.05, 0.8))
HASTY = Teachers((0.3, 0.6, 0.9), (0.2, 0.8), (0.4, 0.9), (0.4, 0.95))


class Ideas(NamedTuple):
    """Steps [R, C, N - 1] of ideas: which two of the values at hand, how combined, and what comes out."""

    first: np.ndarray
    second: np.ndarray
    operator: np.ndarray
    result: np.ndarray

    def of(self, choice: np.ndarray) -> "Ideas":
        """The chosen idea [R] of each stream; steps [R, N - 1]."""
        return Ideas(*(steps[np.arange(len(choice)), choice] for steps in self))


def draw_ideas(numbers: np.ndarray, in_order: np.ndarray, rng: np.random.Generator) -> Ideas:
    """Random ideas for ``numbers`` [R, N], NEAREST for each, in order where ``in_order`` [R]; results are whole."""
    rows, count = len(numbers) * NEAREST, numbers.shape[1]
    values = np.repeat(numbers, NEAREST, axis=0)
    in_order = np.repeat(in_order, NEAREST)
    steps, every = [], np.arange(rows)
    for size in range(count, 1, -1):
        pairs = np.argsort(rng.random((rows, size)), axis=1)[:, :2]
        pairs[in_order] = (0, 1)
        i, j = pairs.T
        i, j = np.where(values[every, i] >= values[every, j], (i, j), (j, i))  # the larger comes first
        x, y = values[every, i], values[every, j]
        quotient = x // np.maximum(y, 1)
        results = np.stack((x + y, x - y, x * y, quotient), axis=1)
        allowed = results <= LARGEST
        allowed[:, 3] &= (y > 0) & (quotient * y == x)
        operator = np.where(allowed, rng.random((rows, 4)), -1).argmax(axis=1)
        result = results[every, operator]
        steps.append((i, j, operator, result))
        rest = np.ones((rows, size), bool)
        rest[every, i] = rest[every, j] = False
        values = np.column_stack((result, values[rest].reshape(rows, size - 2)))
    return Ideas(*(np.stack(kind, axis=1).reshape(-1, NEAREST, count - 1) for kind in zip(*steps, strict=True)))


def written(numbers: Sequence[int], idea: Sequence[Sequence[int]]) -> tuple[str, str]:
    """The steps "3*5=15 15+7=22" of an idea, four lists of N - 1, and its expression "(3*5)+7"."""
    values, texts, steps = list(numbers), [str(number) for number in numbers], []
    for i, j, operator, result in zip(*idea, strict=True):
        sign = OPERATORS[operator]
        steps.append(f"{values[i]}{sign}{values[j]}={result}")
        made = f"{_operand(texts[i])}{sign}{_operand(texts[j])}"
        rest = [index for index in range(len(values)) if index not in (i, j)]
        values = [result, *(values[index] for index in rest)]
        texts = [made, *(texts[index] for index in rest)]
    return " ".join(steps), texts[0]


def _operand(expression: str) -> str:
    return expression if expression.isdigit() else f"({expression})"


def streams(numbers: np.ndarray, targets: np.ndarray, teachers: Teachers, rng: np.random.Generator) -> list[str]:
    """One teacher's answer to each problem: ``numbers`` [R, N], ``targets`` [R]."""
    rows = len(numbers)
    impatience, aim, order, careless = (rng.choice(trait, size=rows) for trait in teachers)
    thoughts: list[list[str]] = [[] for _ in range(rows)]
    answers = [""] * rows
    tried = np.zeros((rows, LARGEST + 1), bool)
    going, every = np.ones(rows, bool), np.arange(rows)
    most = COUNTS[numbers.shape[1]]
    for count in range(1, most + 1):
        ideas = draw_ideas(numbers, rng.random(rows) < order, rng)
        results = ideas.result[:, :, -1]
        stale = tried[every[:, None], results]
        misses = np.abs(results - targets[:, None])
        aimed = rng.random(rows) < aim
        choice = (np.where(aimed[:, None], misses, 0) + stale * 1000).argmin(axis=1)
        chosen, miss = ideas.of(choice), misses[every, choice]
        tried[every, results[every, choice]] = True
        passes = np.select([miss == near for near in NEAR], list(NEAR.values()), 0.0) * careless
        satisfied = (miss == 0) | (rng.random(rows) < passes)
        fed_up = impatience + np.where(miss > 15, 0.15, np.where(miss <= 5, -0.15, 0.0))
        ends = satisfied | (rng.random(rows) < fed_up) | (count == most)
        for row in np.flatnonzero(going):
            steps, expression = written(numbers[row].tolist(), [kind[row].tolist() for kind in chosen])
            thoughts[row].append(f"{steps}{' yes.' if satisfied[row] else ' no.'}")
            answers[row] = expression
        going &= ~ends
    return [
        f"<think>{' '.join(thought)}</think>\n<answer>{answer}</answer>"
        for thought, answer in zip(thoughts, answers, strict=True)
    ]


def answers_of(problems: Sequence[dict[str, Any]], teachers: Teachers, rng: np.random.Generator) -> list[str]:
    """One teacher's answer to each Countdown problem."""
    answers = [""] * len(problems)
    for size in sorted({len(problem["numbers"]) for problem in problems}):
        rows = [row for row, problem in enumerate(problems) if len(problem["numbers"]) == size]
        numbers = np.array([problems[row]["numbers"] for row in rows])
        targets = np.array([problems[row]["target"] for row in rows])
        for row, answer in zip(rows, streams(numbers, targets, teachers, rng), strict=True):
            answers[row] = answer
    return answers
