"""What a person sees of a run: training time without the pauses, lines at a readable pace, what is left."""

import io
import itertools
import re
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from eggroll_rl.runs import clock as clock_module
from eggroll_rl.runs import progress
from eggroll_rl.runs.clock import Stopwatch
from eggroll_rl.runs.curve import LEVELS, changed_answer, curve_lines
from eggroll_rl.runs.progress import ProgressDisplay


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (progress, clock_module):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=clock, monotonic=clock))
    return clock


def record(generation: int, seconds: float, **changes: Any) -> dict[str, Any]:
    plain = {"reward_mean": 0.25, "reward_best_member": 0.5, "update_rms": 2e-5, "tokens_per_second": 12_345.6}
    return {"generation": generation, "seconds": seconds, "reward_failures": {"timeout": 0}, **plain, **changes}


def shown(*records: dict[str, Any], minutes: float | None = None, clock: Clock | None = None, step: float = 10) -> str:
    """What a file gets to see of a run of ten generations, with ``step`` seconds between the records."""
    out = io.StringIO()
    with ProgressDisplay(10, minutes, Console(file=out, highlight=False, soft_wrap=True)) as display:
        for each in records:
            if clock is not None:
                clock.now += step
            display.generation(each)
    return out.getvalue()


def test_pauses_do_not_count(clock: Clock) -> None:
    watch = Stopwatch(minutes=1)
    clock.now += 10
    assert watch.lap() == (10, 10, {})
    clock.now += 5
    with watch.paused():
        clock.now += 1000
    clock.now += 15
    assert watch.seconds == 30
    assert watch.lap() == (20, 30, {})
    assert not watch.expired
    clock.now += 30
    assert watch.expired


def test_notes_divide_a_lap(clock: Clock) -> None:
    watch = Stopwatch(minutes=None)
    for part, seconds in (("update", 1), ("generate", 5), ("score", 2), ("generate", 3)):
        clock.now += seconds
        with watch.paused():
            clock.now += 1000
        watch.note(part)
    clock.now += 4
    assert watch.lap("score") == (15, 15, {"update": 1, "generate": 8, "score": 6})
    clock.now += 6
    watch.note("update")
    assert watch.lap() == (6, 21, {"update": 6})


def test_a_pause_within_a_pause_is_a_part_of_it(clock: Clock) -> None:
    watch = Stopwatch(minutes=None)
    clock.now += 3
    with watch.paused():
        clock.now += 5
        with watch.paused():
            clock.now += 7
            assert watch.seconds == 3
        clock.now += 11
        assert watch.seconds == 3
    clock.now += 1
    assert watch.seconds == 4


def test_a_pause_that_fails_ends_as_well(clock: Clock) -> None:
    watch = Stopwatch(minutes=None)
    with pytest.raises(KeyError), watch.paused():
        clock.now += 7
        raise KeyError
    clock.now += 3
    assert watch.seconds == 3


def test_without_a_limit_time_never_runs_out(clock: Clock) -> None:
    watch = Stopwatch(minutes=None)
    clock.now += 1e9
    assert not watch.expired


def test_a_line_says_how_it_goes(clock: Clock) -> None:
    assert shown(record(3, seconds=20.0)) == (
        "generation 3  reward 0.250 (best member 0.500)  step 2.0e-05  12,346 tokens/s  20s, 30s left\n"
    )


def test_the_time_left_is_that_of_the_limit_that_comes_first(clock: Clock) -> None:
    assert "20s, 180s left" in shown(record(0, seconds=20.0))
    assert "20s, 40s left" in shown(record(0, seconds=20.0), minutes=1)
    assert "20s, 20s left" in shown(record(4, seconds=20.0), minutes=1)
    assert "80s, 0s left" in shown(record(0, seconds=80.0), minutes=1)
    assert "80s, 0s left" in shown(record(9, seconds=80.0))


def test_lines_come_at_a_readable_pace(clock: Clock) -> None:
    quick = shown(*(record(index, 1 + index) for index in range(10)), clock=clock, step=1)
    assert re.findall(r"^generation (\d)", quick, re.MULTILINE) == ["0", "5"]
    slow = shown(*(record(index, 1 + index) for index in range(10)), clock=clock, step=6)
    assert len(slow.splitlines()) == 10


def test_failed_and_missing_rewards_are_told(clock: Clock) -> None:
    line = shown(
        record(
            0, 1.0, reward_mean=None, reward_best_member=None, reward_failures={"timeout": 3, "crash": 4, "value": 0}
        )
    )
    assert "reward none (best member none)" in line
    assert "7 rewards failed" in line
    assert "failed" not in shown(record(0, 1.0))


def test_what_is_said_stays_as_it_is() -> None:
    text = "held-out accuracy 40.0% [11.8%, 76.9%] of runs/[red]x[/nope] :smile: " + "and so on, " * 20
    out = io.StringIO()
    ProgressDisplay(10, None, Console(file=out, highlight=False, soft_wrap=True)).say(text)
    assert out.getvalue() == text + "\n"


def test_a_terminal_has_a_bar_and_no_lines(clock: Clock) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=160, color_system=None)
    with ProgressDisplay(10, None, console) as display:
        display.generation(record(3, seconds=20.0))
        display.say("a word")
    assert "generation 3 ━" in out.getvalue()
    assert "reward 0.250 (best member 0.500)" in out.getvalue()
    assert "a word" in out.getvalue()
    assert "30s left" not in out.getvalue()


def evaluated(generation: int, accuracy: float, completion: str, correct: bool) -> dict[str, Any]:
    answers = [
        {"prompt": "one?", "completion": "same", "correct": True},
        {"prompt": "[b]two[/b]?", "completion": completion, "correct": correct},
    ]
    return {"generation": generation, "accuracy": accuracy, "answers": answers}


def test_a_terminal_shows_the_curve_and_an_answer_that_changed() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, color_system=None)
    records = {0: evaluated(0, 0.25, "Maybe \x1b[31m 3", False)}
    with ProgressDisplay(10, None, console) as display:
        display.evaluations(records)
        assert "asked:" not in out.getvalue()
        records |= {4: evaluated(4, 0.5, "so 4", True), 8: evaluated(8, 0.75, "so 5\n", True)}
        display.evaluations(records)
    text = out.getvalue()
    assert "held-out accuracy, generations 0 to 8" in text
    assert "  75.0% │  █" in text
    assert "  25.0% │▁██" in text
    assert "asked:  [b]two[/b]?" in text
    assert "before: ✗ Maybe \ufffd[31m 3" in text
    assert "after:  ✓ so 5" in text


def test_elsewhere_no_curve_is_shown() -> None:
    out = io.StringIO()
    with ProgressDisplay(10, None, Console(file=out)) as display:
        display.evaluations({0: evaluated(0, 0.2, "a", False), 1: evaluated(1, 0.4, "b", True)})
    assert out.getvalue() == ""


@given(
    values=st.lists(st.floats(0, 9, allow_nan=False), min_size=2, max_size=90),
    width=st.integers(2, 70),
    key=st.sampled_from(["accuracy", "bits_per_byte"]),
)
def test_bars_are_in_the_order_of_the_values(values: list[float], width: int, key: str) -> None:
    lines = curve_lines({3 * index: {key: value} for index, value in enumerate(values)}, width)
    title, *rows = lines
    shown = values[-width:]
    assert title.endswith(f"generations {3 * (len(values) - len(shown))} to {3 * (len(values) - 1)}")
    bars = [row.partition("│")[2] for row in rows]
    assert {len(bar) for bar in bars} == {len(shown)}
    heights = [sum(LEVELS.index(bar[column]) for bar in bars) for column in range(len(shown))]
    for one, other in itertools.combinations(range(len(shown)), 2):
        if shown[one] < shown[other]:
            assert heights[one] <= heights[other]
    assert min(heights) >= 1
    if max(shown) > min(shown):
        assert max(heights) - min(heights) == len(rows) * (len(LEVELS) - 1) - 1


def test_a_curve_needs_two_points_of_one_measure() -> None:
    assert curve_lines({0: {"accuracy": 0.5}}, 40) == []
    assert curve_lines({0: {"accuracy": 0.5}, 1: {"bits_per_byte": 2.0}}, 40) == []
    assert changed_answer({0: {"answers": []}, 1: {}}) == []
