"""Rewards run apart from the training process: their values, and everything that can go wrong with them.

N members, P prompts.
"""

import logging
import math
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from eggroll_rl.config import RewardConfig, ScoringConfig
from eggroll_rl.scoring import KINDS, RewardError, Scorer
from eggroll_rl.scoring import workers as workers_module
from eggroll_rl.scoring.functions import resolve
from eggroll_rl.scoring.modules import NotFound
from eggroll_rl.scoring.process import OUTPUT, Failure, RewardProcess
from eggroll_rl.scoring.values import RewardOutputs
from eggroll_rl.system.errors import UsageError

REWARDS = """
from __future__ import annotations

import array, asyncio, ctypes, os, subprocess, sys, time
from dataclasses import dataclass
from decimal import Decimal

@dataclass
class Limits:
    least: int = 0

CONSTANT = 1
calls = {"batches": 0, "now": 0, "most": 0}

def length(prompts, completions, **columns):
    return [float(len(text)) for text in completions]

def some(completions, answer):
    return [None if a is None else float(a == text) for text, a in zip(completions, answer)]

def aligned(prompts, completions, *, answer, **columns):
    calls["batches"] += 1
    return [calls["batches"] * float(text.startswith(f"{p} {a} ")) for p, text, a in zip(prompts, completions, answer)]

def last_word(completions, extra="none"):
    return [float(message[-1]["content"].split()[-1]) for message in completions]

def on_bad(act):
    def reward(completions, **columns):
        for text in completions:
            if text == "bad":
                act()
        return [1.0] * len(completions)
    return reward

def spawn():
    child = subprocess.Popen(["sleep", "60"])
    print("started", child.pid, flush=True)
    time.sleep(60)

def fork():
    child = os.fork()
    if child == 0:
        time.sleep(60)
    print("started", child, flush=True)

def fork_and_exit():
    fork()
    os._exit(3)

def answered_twice(completions, **columns):
    os.fork()
    return [float(len(text)) for text in completions]

def huge(completions, **columns):
    return [10 ** len(text) for text in completions]

def leave():
    sys.exit("enough")

def fail():
    raise KeyError("missing")

hang = on_bad(lambda: time.sleep(60))
hang_holding_the_interpreter = on_bad(lambda: ctypes.PyDLL(None).sleep(60))
hang_with_a_child = on_bad(spawn)
leave_a_child = on_bad(fork)
exit_leaving_a_child = on_bad(fork_and_exit)
exit_ = on_bad(lambda: os._exit(3))
segfault = on_bad(lambda: ctypes.string_at(0))
hog = on_bad(lambda: bytearray(2**31))
leave_ = on_bad(leave)
fail_ = on_bad(fail)

def short_on_bad(completions, **columns):
    return [1.0] * (len(completions) - ("bad" in completions))

def always_hangs(completions, **columns):
    time.sleep(60)

def always_fails(completions, **columns):
    raise RuntimeError("broken for good")

def slow_length(completions, **columns):
    if "slow" in completions:
        time.sleep(1.0)
    return [float(len(text)) for text in completions]

def loud(completions, **columns):
    for _ in range(512):
        os.write(1, b"x" * 2**20)
        os.write(2, b"y" * 2**20)
    print("the end", flush=True)
    return [1.0] * len(completions)

def odd(completions, **columns):
    values = dict(nan=float("nan"), inf=float("inf"), text="1.0", list=[1.0], decimal=Decimal(2), bool=True)
    return [values[text] for text in completions]

def typed_array(completions, **columns):
    return array.array("d", range(len(completions)))

def scalar(completions, **columns):
    return 1.0

async def counted(completions, **columns):
    calls["now"] += 1
    calls["most"] = max(calls["most"], calls["now"])
    await asyncio.sleep(0.02)
    calls["now"] -= 1
    await asyncio.sleep(0.02)
    return [1000.0 * len(completions) + calls["most"]] * len(completions)

async def fail_in_parallel(completions, **columns):
    await asyncio.sleep(0.001)
    if "bad" in completions:
        fail()
    return [1.0] * len(completions)

def surroundings(completions, **columns):
    return [float("torch" in sys.modules) + 2 * float("mine" in sys.modules)] * len(completions)
"""


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    path = tmp_path_factory.mktemp("rewards") / "mine.py"
    path.write_text(REWARDS)
    return path


@pytest.fixture
def scorer(mine):
    """Opens scorers over functions of the user's file, and closes them."""
    opened = []

    def open_scorer(*names, weights=None, **config):
        rewards = [
            RewardConfig(fn=f"{mine}:{name}", weight=w)
            for name, w in zip(names, weights or [1.0] * len(names), strict=True)
        ]
        opened.append(Scorer(rewards, ScoringConfig(**{"timeout": 20.0, "memory_gib": 1.0} | config)))
        return opened[-1]

    yield open_scorer
    for each in opened:
        each.close()


def batch(N, P, bad=()):
    return [["bad" if (n, p) in bad else f"fine {n} {p}" for p in range(P)] for n in range(N)]


def score(scorer, completions, **columns):
    return scorer(completions, [f"prompt {p}" for p in range(len(completions[0]))], columns)


def same(actual, expected):
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), equal_nan=True, rtol=0, atol=1e-12)


def output_of(scorer):
    return bytes(scorer._workers._workers[0]._output.tail)


def processes():
    """The processes that were started by this one, and theirs."""
    return {child.pid for child in psutil.Process().children(recursive=True)}


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until_gone(pid, seconds=5.0):
    deadline = time.monotonic() + seconds
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_running(pid)


def test_weighted_sum_over_the_functions_that_apply(scorer):
    scores = score(
        scorer("length", "some", "some", weights=[0.5, 2.0, -1.0]), [["a", "bb"], ["bb", "a"]], answer=["a", None]
    )
    same(scores.by_function["length"], [[1, 2], [2, 1]])
    same(scores.by_function["some"], [[1, math.nan], [0, math.nan]])
    same(scores.by_function["some_2"], [[1, math.nan], [0, math.nan]])
    same(scores.rewards_NP, [[1.5, 1.0], [1.0, 0.5]])
    assert scores.failures == dict.fromkeys(KINDS, 0)


def test_nan_where_no_function_applies(scorer):
    same(score(scorer("some"), [["a", "b"]], answer=["a", None]).rewards_NP, [[1.0, math.nan]])


def test_one_call_with_columns_repeated_for_every_member(scorer):
    completions = [[f"prompt {p} {p * p} of member {n}" for p in range(3)] for n in range(4)]
    aligned = scorer("aligned")
    for calls in (1.0, 2.0):
        same(score(aligned, completions, answer=[0, 1, 4]).rewards_NP, [[calls] * 3] * 4)


def test_messages_pass_as_in_trl(scorer):
    completions = [[[{"role": "assistant", "content": f"it is {n}"}]] for n in range(3)]
    same(score(scorer("last_word"), completions, unused=["x"]).rewards_NP, [[0.0], [1.0], [2.0]])


def test_a_shipped_reward_by_its_module():
    with Scorer([RewardConfig(fn="eggroll_rl.rewards.countdown:countdown")]) as shipped:
        scores = score(
            shipped, [["<answer>3*8</answer>"], ["<answer>44**19**35</answer>"]], numbers=[(3, 8)], target=[24]
        )
    same(scores.rewards_NP, [[1.0], [0.0]])


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("hang", "timeout", "no answer within"),
        ("hang_holding_the_interpreter", "timeout", "no answer within"),
        ("exit_", "crash", "exited with code 3"),
        ("segfault", "crash", "died of SIGSEGV"),
        ("hog", "exception", "MemoryError"),
        ("leave_", "exception", "SystemExit: enough"),
        ("fail_", "exception", "KeyError: 'missing'"),
        ("fail_in_parallel", "exception", "KeyError: 'missing'"),
    ],
)
def test_a_failure_costs_the_completion_at_fault(scorer, caplog, name, kind, reason):
    N = 4 if kind == "timeout" else 20  # singles at once, or by way of parts
    failing = scorer(name, timeout=2.0 if kind == "timeout" else 20.0)
    with caplog.at_level(logging.WARNING, logger="eggroll_rl"):
        scores = score(failing, batch(N, 4, bad=[(3, 2)]))
    expected = [[math.nan if (n, p) == (3, 2) else 1.0 for p in range(4)] for n in range(N)]
    same(scores.rewards_NP, expected)
    same(scores.by_function[name], expected)
    assert scores.failures == dict.fromkeys(KINDS, 0) | {kind: 1}
    assert f"1 of {4 * N} completions (1 {kind}); completion 14" in caplog.text
    assert reason in caplog.text
    if name != "exit_":
        assert re.search(r"mine\.py:\d+\)", caplog.text)  # the place in the user's file
    same(score(failing, batch(2, 2)).rewards_NP, [[1.0, 1.0], [1.0, 1.0]])


def test_one_completion_in_a_hundred_hangs(scorer):
    bad = [(3, 2), (17, 9)]
    scores = score(scorer("hang", timeout=3.0), batch(20, 10, bad=bad))
    assert {tuple(place) for place in scores.rewards_NP.isnan().nonzero().tolist()} == set(bad)
    assert scores.failures["timeout"] == 2


@pytest.mark.parametrize("first", [0.001, 0.5])
def test_the_sound_ones_do_not_wait_for_those_that_hang(scorer, monkeypatch, first):
    """A clock and calls written out: of 2,048 completions 1 in 100 hangs, one is slow, a new process takes 0.2 s."""
    slow, now, restart = 5, 0.0, 0.2
    seconds = dict.fromkeys(range(2048), 0.001) | dict.fromkeys(range(50, 2048, 100), math.inf) | {slow: 1.2}

    def call(worker, index, rows, limit):
        nonlocal now
        taken = first + sum(seconds[row] for row in rows)
        now += min(taken, limit + restart)
        if taken > limit:
            raise Failure("timeout", "late")
        return RewardOutputs([1.0] * len(rows), {}, {})

    scoring = scorer("length", timeout=30.0, workers=1)
    monkeypatch.setattr(workers_module, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(RewardProcess, "call", call)
    score(scoring, batch(1, 1))
    now = 0.0
    rewards = score(scoring, batch(256, 8)).rewards_NP.view(-1)
    hanging = {row for row, taken in seconds.items() if taken == math.inf}
    assert now < 2 * scoring.config.timeout + 2 + restart
    if first < 0.1:
        assert set(rewards.isnan().nonzero().view(-1).tolist()) == hanging
        assert rewards[slow] == 1.0
    else:  # 2 s for any part that hangs: what is left is not reached, but for what was tried before
        assert not rewards.isnan().all()


def test_several_crashes_in_one_batch(scorer):
    bad = [(0, 0), (2, 3), (3, 3)]
    scores = score(scorer("exit_"), batch(4, 4, bad=bad))
    assert {tuple(place) for place in scores.rewards_NP.isnan().nonzero().tolist()} == set(bad)
    assert scores.failures["crash"] == 3


def test_a_failed_function_hides_the_others(scorer):
    scores = score(scorer("length", "fail_"), batch(1, 3, bad=[(0, 1)]))
    same(scores.rewards_NP, [[9.0, math.nan, 9.0]])
    same(scores.by_function["length"], [[8.0, 3.0, 8.0]])


def test_what_always_hangs_ends_within_its_budget(scorer):
    hanging = scorer("always_hangs", timeout=0.4)
    began = time.monotonic()
    scores = score(hanging, batch(10, 10))
    assert scores.failures["timeout"] == 100
    assert bool(scores.rewards_NP.isnan().all())
    assert 0.8 < time.monotonic() - began < 6.0


def test_what_always_fails_gives_nan_and_the_run_goes_on(scorer):
    scores = score(scorer("always_fails", "length"), batch(10, 10))
    assert scores.failures["exception"] == 100
    assert bool(scores.rewards_NP.isnan().all())
    assert not scores.by_function["length"].isnan().any()


def test_a_gigabyte_of_output_is_let_go(scorer):
    loud, before = scorer("loud"), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    same(score(loud, [["a"]]).rewards_NP, [[1.0]])

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 2**10  # KiB
    deadline = time.monotonic() + 5
    while not output_of(loud).endswith(b"the end\n") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert output_of(loud).endswith(b"y" * 100 + b"the end\n")
    assert len(output_of(loud)) <= OUTPUT


def test_values_that_are_no_finite_numbers(scorer):
    scores = score(scorer("odd"), [["nan", "inf", "text", "list", "decimal", "bool"]])
    same(scores.rewards_NP, [[math.nan] * 4 + [2.0, 1.0]])
    assert scores.failures == dict.fromkeys(KINDS, 0) | {"value": 4}


def test_arrays_are_lists(scorer):
    same(score(scorer("typed_array"), batch(2, 2)).rewards_NP, [[0, 1], [2, 3]])


def test_a_wrong_count_is_a_mistake_at_first_and_a_failure_later(scorer):
    short = scorer("short_on_bad")
    with pytest.raises(UsageError, match=r"short_on_bad' returned 3 values for 4 completions"):
        score(short, batch(2, 2, bad=[(1, 0)]))
    score(short, batch(2, 2))
    scores = score(short, batch(2, 2, bad=[(1, 0)]))
    same(scores.rewards_NP, [[1.0, 1.0], [math.nan, 1.0]])
    assert scores.failures["shape"] == 1


@pytest.mark.parametrize(("concurrency", "rows", "most"), [(64, 1, 12), (4, 3, 4), (1, 12, 1)])
def test_async_slices_run_together_up_to_the_limit(scorer, concurrency, rows, most):
    scores = score(scorer("counted", concurrency=concurrency), batch(6, 2))
    same(scores.rewards_NP, [[1000.0 * rows + most] * 2] * 6)


def test_on_error_raise_names_function_and_reason(scorer, mine):
    with pytest.raises(RewardError, match=rf"mine.py:fail_' failed \(exception\): KeyError: 'missing' \({mine}:\d+\)"):
        score(scorer("fail_", on_error="raise"), batch(2, 2, bad=[(0, 0)]))
    with pytest.raises(RewardError, match="returned nan"):
        score(scorer("odd", on_error="raise"), [["decimal", "nan"]])


def test_worker_is_light_and_module_names_stay_free(scorer):
    same(score(scorer("surroundings"), [["a"]]).rewards_NP, [[0.0]])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("countdown", "'countdown' has no ':'; write package.module:function or path/file.py:function"),
        ("mine.py:", "'mine.py:' has no ':'"),
        ("nowhere/mine.py:length", "'nowhere/mine.py' does not exist"),
        ("no_such_package.rewards:length", "there is no 'no_such_package'"),
        ("eggroll_rl.rewards.countdwn:countdown", "there is no 'eggroll_rl.rewards.countdwn'"),
        (
            "eggroll_rl.rewards.countdown:countdwn",
            "no 'countdwn' in eggroll_rl.rewards.countdown; did you mean 'countdown'?",
        ),
        ("{mine}:zzz", "no 'zzz' in .*mine.py; there is Limits, length, some"),
        ("{mine}:CONSTANT", "is a int; name a function"),
    ],
)
def test_import_strings_that_lead_nowhere(mine, spec, message):
    with pytest.raises(NotFound, match=message):
        resolve(spec.format(mine=mine))


def test_paths_are_relative_to_the_working_directory(mine, monkeypatch):
    monkeypatch.chdir(mine.parent)
    with Scorer([RewardConfig(fn="mine.py:length")]) as relative, Scorer([RewardConfig(fn="mine:length")]) as module:
        assert score(relative, [["abc"]]).rewards_NP == score(module, [["abc"]]).rewards_NP == 3.0
    with pytest.raises(UsageError, match="did you mean 'length'"):
        Scorer([RewardConfig(fn="mine.py:lenght")])


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def f(:\n", r"cannot be imported: SyntaxError: .*broken.py:1\)"),
        (
            "x = 1\nimport no_such_package\n",
            r"ModuleNotFoundError: No module named 'no_such_package' \(.*broken.py:2\)",
        ),
        ("import os\nos._exit(7)\n", "exited with code 7"),
    ],
)
def test_a_module_that_cannot_be_imported_is_a_usage_error(tmp_path, code, message):
    (tmp_path / "broken.py").write_text(code)
    with pytest.raises(UsageError, match=message):
        Scorer([RewardConfig(fn=f"{tmp_path}/broken.py:f")])


def test_check_names_the_columns_that_exist(scorer):
    checked = scorer("some", "last_word")
    checked.check(["answer"])
    with pytest.raises(
        UsageError,
        match=r"some' needs a column 'answer'; the data has question, solution: rename one with data\.columns\.answer",
    ):
        checked.check(["question", "solution"])
    with pytest.raises(UsageError, match="the data has none"):
        score(checked, [["a"]])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scalar", "returned 1.0, not a list of 2 numbers"),
        ("always_fails", r"RuntimeError: broken for good \(.*mine.py:\d+\)"),
        ("last_word", r"IndexError: string index out of range \(.*mine.py:\d+\)"),
        ("always_hangs", "no answer within 0.5 s"),
        ("some", "needs a column 'answer'"),
    ],
)
def test_probe_finds_mistakes_before_a_run(scorer, name, message):
    with pytest.raises(UsageError, match=message):
        scorer(name, timeout=0.5).probe(["a", "b"], {})


def test_probe_accepts_what_works(scorer):
    scorer("length", "some").probe(["a", [{"role": "user", "content": "b"}]], {"answer": ["a", None]})


def test_lengths_and_columns_that_cannot_be_sent(scorer):
    length = scorer("length")
    with pytest.raises(ValueError, match="answer has 3 values for 2 prompts"):
        score(length, batch(2, 2), answer=[1, 2, 3])
    with pytest.raises(UsageError, match="column cannot be sent"):
        score(length, batch(1, 1), answer=[lambda: 0])


def test_a_timeout_ends_the_processes_a_reward_started(scorer):
    spawning = scorer("hang_with_a_child", timeout=1.0)
    score(spawning, [["bad"]])
    assert wait_until_gone(int(output_of(spawning).split(b"started ")[-1].split()[0]))


@pytest.mark.parametrize("name", ["leave_a_child", "exit_leaving_a_child"])
def test_no_forked_child_survives_the_scorer(scorer, name):
    forking = scorer(name, timeout=1.0)
    score(forking, [["bad"]])
    child = int(output_of(forking).split(b"started ")[-1].split()[0])
    forking.close()
    assert wait_until_gone(child)


def test_a_forked_child_does_not_answer(scorer):
    forking = scorer("answered_twice")
    for words in (["a", "bb"], ["ccc", "dddd"], ["e", "f"]):
        same(score(forking, [words]).rewards_NP, [[float(len(word)) for word in words]])


def test_a_number_beyond_floats_costs_its_completion_alone(scorer):
    scores = score(scorer("huge"), [["a", "b" * 400, "cc"]])
    same(scores.rewards_NP, [[10.0, math.nan, 100.0]])
    assert scores.failures["value"] == 1


def test_close_ends_the_processes(scorer):
    before = processes()
    closing = scorer("length")
    started = processes() - before
    assert len(started) == 3  # what imports the modules, a guard, the worker
    closing.close()
    assert not any(map(is_running, started))


@pytest.mark.parametrize("busy", [False, True])
def test_the_worker_dies_with_its_parent(mine, busy):
    code = f"""
import threading, time
from eggroll_rl.config import RewardConfig
from eggroll_rl.scoring import Scorer
scorer = Scorer([RewardConfig(fn="{mine}:hang_with_a_child")])
if {busy}:
    threading.Thread(target=scorer, args=([["bad"]], ["p"], {{}}), daemon=True).start()
    time.sleep(0.5)
print("ready", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        started = psutil.Process(parent.pid).children(recursive=True)
        assert len(started) == 3 + busy
        os.kill(parent.pid, signal.SIGKILL)
    assert all(wait_until_gone(process.pid) for process in started)


def test_two_thousand_completions_take_milliseconds(scorer):
    length = scorer("length")
    completions = [["x" * 200] * 8] * 256
    best = math.inf
    for _ in range(5):
        began = time.perf_counter()
        scores = score(length, completions)
        best = min(best, time.perf_counter() - began)
    assert bool((scores.rewards_NP == 200).all())
    assert best < 0.1


def test_an_interrupted_call_leaves_no_reply_for_the_next(scorer):
    slow = scorer("slow_length")

    def interrupt(*_):
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            score(slow, [["slow"]])
    finally:
        signal.signal(signal.SIGALRM, previous)
    same(score(slow, [["four five"]]).rewards_NP, [[9.0]])
