"""Rewards that do anything at all: the sound completions get their numbers, the others NaN, and nothing is left behind.

N members, P prompts.
"""

import json
import math
import os
import subprocess
import sys
import threading
from decimal import Decimal
from fractions import Fraction

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eggroll_rl.config import PopulationConfig, RewardConfig, ScoringConfig, load_recipe
from eggroll_rl.data.dataset import Batch
from eggroll_rl.es.population import Population
from eggroll_rl.es.rollout import Completion
from eggroll_rl.es.update import Update
from eggroll_rl.runs.clock import Lap
from eggroll_rl.runs.evaluation import score as score_answers
from eggroll_rl.runs.metrics import entry_of, judged_answers
from eggroll_rl.scoring import Scorer
from eggroll_rl.scoring.replies import parsed, parsed_start
from eggroll_rl.system.errors import UsageError

MARK = "300.77"  # seconds, of the sleeps that these rewards start
ZOO = f"""
import builtins, ctypes, fractions, io, json, os, signal, socket, subprocess, sys, threading, time
import eggroll_rl.scoring.worker as worker

def session():
    subprocess.Popen(["sleep", "{MARK}"], start_new_session=True)

def daemon():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execvp("sleep", ["sleep", "{MARK}"])
        os._exit(0)

def then(act, start=session):
    def both():
        start()
        act()
    return both

def bomb(depth=6):
    for _ in range(2):
        if depth and os.fork() == 0:
            os.setsid()
            bomb(depth - 1)
            time.sleep({MARK})

def sockets():
    for descriptor in range(3, 64):
        try:
            yield socket.socket(fileno=os.dup(descriptor))
        except OSError:
            pass

def write(message):
    for channel in sockets():
        if channel.family == socket.AF_UNIX and channel.type & 1:
            try:
                channel.send(message)
            except OSError:
                pass

def framed(text):
    return len(text).to_bytes(8) + text

def patch():
    builtins.len = lambda _: 1
    builtins.float = lambda _: 1.0
    json.dumps = json.loads = lambda *_: "1"
    worker.send = lambda *_: None

def recurse():
    return recurse() + 1

def shut():
    for channel in sockets():
        channel.shutdown(socket.SHUT_RDWR)

ACTS = dict(
    exit=then(lambda: os._exit(3)),
    leave=then(lambda: sys.exit(0), daemon),
    interrupt=then(lambda: signal.raise_signal(signal.SIGINT)),
    segfault=then(lambda: ctypes.string_at(0), daemon),
    kill_itself=then(lambda: os.kill(os.getpid(), signal.SIGKILL)),
    kill_parent=then(lambda: os.kill(os.getppid(), signal.SIGKILL)),
    terminate_parent=then(lambda: (os.kill(os.getppid(), signal.SIGTERM), time.sleep(60))),
    kill_group=then(lambda: os.killpg(0, signal.SIGKILL), daemon),
    stop=then(lambda: os.kill(os.getpid(), signal.SIGSTOP)),
    hang=then(lambda: time.sleep(60), daemon),
    hang_in_c=then(lambda: ctypes.PyDLL(None).sleep(60)),
    bomb=then(lambda: os._exit(1), bomb),
    close_all=then(lambda: os.closerange(0, 100)),
    shut=then(shut),
    garbage=then(lambda: write(b"\\x00\\xff" * 50)),
    endless=then(lambda: write((2**60).to_bytes(8))),
    deep=then(lambda: write(framed(b"[" * 50000 + b"]" * 50000))),
    forged=then(lambda: write(framed(b'{{"token": "0", "rewards": [9.0]}}'))),
    infinite=then(lambda: write(framed(b'{{"token": "0", "rewards": [Infinity, 1e999, NaN]}}'))),
    patch=then(patch),
    recurse=then(recurse),
    eof=then(lambda: sys.stdin.readline() or fail()),
    loud=then(lambda: [os.write(2, b"\\x1b[2J\\xff" * 2**14) for _ in range(64)] and fail()),
    thread=then(lambda: (threading.Thread(target=time.sleep, args=[60]).start(), fail())),
)

def fail():
    raise BaseException("\\ud800 \\x00")

def zoo(completions, **columns):
    for text in completions:
        if text in ACTS:
            ACTS[text]()
    return [float(len(text)) for text in completions]

def honest(completions, **columns):
    return [float(len(text)) for text in completions]
"""
ACTS = [line.split("=")[0].strip() for line in ZOO.split("ACTS = dict(")[1].split("\n)", 1)[0].splitlines()[1:]]


def left_behind():
    """Processes that a reward started."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if MARK in (process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    path = tmp_path_factory.mktemp("zoo") / "zoo.py"
    path.write_text(ZOO)
    config = ScoringConfig(timeout=1.0, memory_gib=1.0, workers=2)
    with Scorer([RewardConfig(fn=f"{path}:zoo"), RewardConfig(fn=f"{path}:honest")], config) as scorer:
        yield scorer


def score(scorer, *texts):
    return scorer([list(texts)], ["p"] * len(texts), {})


@pytest.mark.parametrize("act", ACTS)
def test_whatever_a_reward_does_the_others_keep_their_numbers(zoo, act):
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    texts = ["one", act, "three"]
    scores = score(zoo, *texts)
    values = scores.by_function["zoo"].view(-1).tolist()
    assert values[0] == 3.0
    assert values[2] == 5.0
    assert math.isnan(values[1]) or values[1] == len(act)
    assert math.isnan(values[1]) == (sum(scores.failures.values()) == 1)
    assert scores.by_function["honest"].view(-1).tolist() == [3.0, float(len(act)), 5.0]
    assert score(zoo, "four", "fives").rewards_NP.view(-1).tolist() == [8.0, 10.0]
    zoo._workers._workers[0].kill()
    zoo._workers._workers[1].kill()
    psutil.wait_procs(left_behind(), timeout=1.0)
    assert not left_behind()
    after = {child.pid for child in psutil.Process().children(recursive=True)}
    assert len(after - before) <= 3


def test_restarts_leave_no_descriptors_or_threads(zoo):
    """How many workers run after a call depends on which of them ended first: a few more or fewer are no leak."""

    def held():
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    score(zoo, "one", "exit", "hang")
    before = held()
    for _ in range(40):
        assert math.isnan(score(zoo, "exit").rewards_NP.item())
    score(zoo, "one", "exit", "hang")
    assert all(now < then + 40 for now, then in zip(held(), before, strict=True))
    assert not left_behind()


def test_a_fork_server_that_dies_is_replaced(zoo):
    score(zoo, "one")
    for process in psutil.Process().children():
        if process.pid == zoo._workers._fork_server._process.pid:
            process.kill()
    psutil.wait_procs(psutil.Process().children(recursive=True), timeout=2.0)
    assert score(zoo, "one", "three").rewards_NP.view(-1).tolist() == [6.0, 10.0]


RETURNS = """
import ast, fractions, decimal, math

class Odd:
    def __float__(self):
        raise ZeroDivisionError("odd")
    def __repr__(self):
        raise RuntimeError("odd")

PLACES = dict(inf=math.inf, nan=math.nan, Odd=Odd, Fraction=fractions.Fraction, Decimal=decimal.Decimal,
              generator=lambda values: (value for value in values), complex=complex, set=set, bytearray=bytearray)

def each(completions, value, **columns):
    return [eval(text, PLACES) for text in value]

def whole(completions, value, **columns):
    return eval(value[0], PLACES)
"""


@pytest.fixture(scope="module")
def returning(tmp_path_factory):
    path = tmp_path_factory.mktemp("returns") / "returns.py"
    path.write_text(RETURNS)
    scorers = {}
    for name in ("each", "whole"):
        scorers[name] = Scorer([RewardConfig(fn=f"{path}:{name}")], ScoringConfig(timeout=10.0, workers=1))
        good = {"each": "0.5", "whole": "[0.5]"}[name]
        assert scorers[name]([["a"]], ["p"], {"value": [good]}).rewards_NP.item() == 0.5
    yield scorers
    for scorer in scorers.values():
        scorer.close()


numbers = st.one_of(
    st.integers(-(2**60), 2**60),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.sampled_from(["Fraction(1, 3)", "Decimal('0.1')"]),
).map(str)
NONE_OF_A_KIND = [
    "inf",
    "-inf",
    "nan",
    "10 ** 400",
    "Odd()",
    "Decimal('sNaN')",
    "'1.0'",
    "'\\ud800'",
    "1j",
    "b'x'",
    "{}",
]
bad = st.one_of(st.sampled_from([*NONE_OF_A_KIND, "[" * 50 + "]" * 50]), st.text().map(repr))
wholes = st.one_of(
    st.lists(numbers | bad, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
    st.lists(numbers | bad, max_size=3).map(lambda items: f"generator([{', '.join(items)}])"),
    st.sampled_from(["{}", "{'a': 1.0, 'b': 2.0}", "{1.0, 2.0}", "'ab'", "None", "[0] * 10 ** 6", "Odd()", "range(2)"]),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(numbers.map(lambda text: (text, True)), bad.map(lambda text: (text, False)), st.none())))
def test_values_are_numbers_or_counted(returning, rows):
    rows = [("0.5", True), *rows]
    column = ["None" if row is None else row[0] for row in rows]
    scores = returning["each"]([["a"] * len(rows)], ["p"] * len(rows), {"value": column})
    for row, value in zip(rows, scores.rewards_NP[0].tolist(), strict=True):
        if row is not None and row[1]:
            assert value == float(eval(row[0], {"Fraction": Fraction, "Decimal": Decimal}))
        else:
            assert math.isnan(value)
    assert sum(scores.failures.values()) == sum(row is not None and not row[1] for row in rows)


@settings(max_examples=100, deadline=None)
@given(wholes)
def test_whatever_a_reward_returns_is_a_number_or_counted(returning, whole):
    scores = returning["whole"]([["a", "b"]], ["p", "q"], {"value": [whole, whole]})
    assert not scores.rewards_NP.isinf().any()
    assert sum(scores.failures.values()) == scores.rewards_NP.isnan().sum()


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.binary(),
        anything.map(lambda value: json.dumps(value).encode()),
        st.dictionaries(
            st.sampled_from(["token", "rewards", "metrics", "extras", "exception", "shape", "functions", "error"]),
            st.just("t") | anything | st.lists(st.floats(), max_size=3),
        ).map(lambda value: json.dumps(value).encode()),
    )
)
def test_a_reply_is_well_formed_or_refused(reply):
    for check in (lambda: parsed_start(reply, 1), lambda: parsed(reply, "t", 2)):
        try:
            checked = check()
        except ValueError:
            continue
        if hasattr(checked, "rewards") and checked.exception is checked.shape is None:
            assert len(checked.rewards) == 2
            assert all(value is None or isinstance(value, str) or math.isfinite(value) for value in checked.rewards)


@pytest.mark.parametrize("reply", [b"[" * 10**5 + b"]" * 10**5, b'{"token": "t", "rewards": [1e400, 1]}', b"9" * 10**5])
def test_replies_that_break_parsers_are_refused(reply):
    with pytest.raises(ValueError, match="an answer that is none"):
        parsed(reply, "t", 2)


@pytest.mark.parametrize("weights", [(1e6, 1.0), (1e6, -1e6), (10.0, 1.0), (1.0, 1.0)])
def test_a_weighted_sum_beyond_floats_is_counted(tmp_path, weights):
    (tmp_path / "big.py").write_text("def big(completions, **columns):\n    return [1.7e308, 1.0][:len(completions)]\n")
    rewards = [RewardConfig(fn=f"{tmp_path}/big.py:big", weight=weight) for weight in weights]
    with Scorer(rewards) as scorer:
        scores = score(scorer, "a", "b")
    assert math.isnan(scores.rewards_NP[0, 0])
    assert math.isfinite(scores.rewards_NP[0, 1])
    assert scores.failures["value"] == 1


@pytest.mark.parametrize("value", ["timeout=1e10", "timeout=0", "memory_gib=1e300", "workers=0", "workers=1e9"])
def test_values_out_of_range_are_refused(value):
    with pytest.raises(UsageError, match=rf"scoring\.{value.split('=')[0]}: .*(should|at least)"):
        load_recipe("countdown_tiny", [f"scoring.{value}"])


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_do_not_depend_on_the_number_of_workers(tmp_path, workers):
    (tmp_path / "mine.py").write_text(
        "def parts(completions, log_metric, **columns):\n"
        "    log_metric('rows', len(completions))\n"
        "    assert 'bad' not in completions\n"
        "    return [float(len(completions))] * len(completions)\n"
    )
    with Scorer([RewardConfig(fn=f"{tmp_path}/mine.py:parts")], ScoringConfig(workers=workers)) as scorer:
        scores = scorer([["bad" if n == 7 else "good"] * 2 for n in range(150)], ["p", "q"], {})
    expected = [1.0 if n == 7 else 3.0 for n in range(300)]
    expected = [math.nan if n in (14, 15) else 1.0 if n in (12, 13, 16, 17) else 3.0 for n in range(300)]
    got = scores.rewards_NP.view(-1).tolist()
    assert [None if math.isnan(v) else v for v in got] == [None if math.isnan(v) else v for v in expected]
    assert scores.failures["exception"] == 2
    assert scores.metrics == {"rows": pytest.approx(sum([3] * 98 + [1] * 4) / 102)}


def test_slow_answers_do_not_cost_the_others_their_turn(tmp_path):
    """Modules that take a while to import, and many answers that hang."""
    (tmp_path / "mine.py").write_text(
        "import time\ntime.sleep(1.0)\n"
        "def slow(completions, **columns):\n"
        "    if 'bad' in completions:\n        time.sleep(60)\n"
        "    return [1.0] * len(completions)\n"
    )
    with Scorer([RewardConfig(fn=f"{tmp_path}/mine.py:slow")], ScoringConfig(timeout=5.0)) as scorer:
        scores = scorer([["bad" if n % 10 == 0 else "good"] for n in range(100)], ["p"], {})
    assert scores.failures["timeout"] == 10
    assert scores.rewards_NP.isnan().nonzero()[:, 0].tolist() == list(range(0, 100, 10))


def test_modules_that_cannot_be_forked_are_imported_by_each_worker(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import os, threading, time\nOWNER = os.getpid()\n"
        "threading.Thread(target=time.sleep, args=[60], daemon=True).start()\n"
        "def mine(completions, **columns):\n    return [float(os.getpid() == OWNER)] * len(completions)\n"
    )
    with Scorer([RewardConfig(fn=f"{tmp_path}/mine.py:mine")]) as scorer:
        assert score(scorer, "a").rewards_NP.item() == 1.0


LAYOUT = {
    "one/mine.py": "from helper import WORD\nimport random, later\ndef mine(completions, **c):\n"
    "    import lazy\n    return [float(WORD + lazy.WORD + later.WORD)] * len(completions)\n",
    "one/helper.py": "WORD = 1",
    "one/later.py": "import helper\nWORD = 10 * helper.WORD",
    "one/lazy.py": "WORD = 100",
    "one/random.py": "raise SystemExit('no module of the standard library')",
    "one/torch.py": "raise SystemExit('no installed module')",
    "two/mine.py": "import helper\ndef mine(completions, **c):\n    return [float(helper.WORD)] * len(completions)\n",
    "two/helper.py": "WORD = 2",
    "pack/__init__.py": "",
    "pack/deep/__init__.py": "START = 5",
    "pack/shared.py": "WORD = 30",
    "pack/deep/mine.py": "from . import START\nfrom ..shared import WORD\nfrom pack.shared import WORD as SAME\n"
    "def mine(completions, **c):\n    return [float(START + WORD + SAME)] * len(completions)\n",
    "flat/mine.py": "from .helper import WORD\ndef mine(completions, **c):\n"
    "    return [float(WORD)] * len(completions)\n",
    "flat/helper.py": "WORD = 4",
}


def test_modules_beside_a_reward_are_its_own(tmp_path):
    for name, text in LAYOUT.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    folders = {"one": 111.0, "two": 2.0, "pack/deep": 65.0, "flat": 4.0}
    with Scorer([RewardConfig(fn=f"{tmp_path}/{folder}/mine.py:mine") for folder in folders]) as scorer:
        for _ in range(2):
            scores = score(scorer, "a")
            assert [values.item() for values in scores.by_function.values()] == list(folders.values())


TRL = """
import functools
from trl.rewards import get_repetition_penalty_reward, get_soft_overlong_punishment

repetition = get_repetition_penalty_reward(ngram_size=2)
overlong = get_soft_overlong_punishment(max_completion_len=4, soft_punish_cache=2)

def scaled(completions, scale, **kwargs):
    return [scale * len(completion) for completion in completions]

doubled = functools.partial(scaled, scale=2)

async def logged(completion_ids, trainer_state, log_metric, log_extra, **kwargs):
    log_metric("tokens", sum(map(len, completion_ids)) / len(completion_ids))
    log_metric("lost", float("nan"))
    log_extra("count", [len(ids) for ids in completion_ids])
    return [trainer_state.global_step / trainer_state.max_steps] * len(completion_ids)

class Object:
    async def __call__(self, completions, **kwargs):
        return [float(kwargs["completion_ids"][0][0])] * len(completions)

called = Object()
"""


@pytest.mark.slow
def test_trl_functions_run_unchanged(tmp_path):
    pytest.importorskip("trl")
    from trl.rewards import accuracy_reward, get_repetition_penalty_reward, get_soft_overlong_punishment

    from eggroll_rl.scoring import TrainerState

    (tmp_path / "mine.py").write_text(TRL)
    names = ["repetition", "overlong", "doubled", "logged", "called"]
    rewards = [RewardConfig(fn=f"{tmp_path}/mine.py:{name}") for name in names]
    rewards.append(RewardConfig(fn="trl.rewards:accuracy_reward"))
    ids = [[[7, 7, 7], [1, 2, 3, 4, 5]], [[1, 2, 3, 4], [6]]]
    texts = [[[{"role": "assistant", "content": rf"\boxed{{{n + p}}}"}] for p in range(2)] for n in range(2)]
    solution = ["$0$", "$2$"]
    with Scorer(rewards, ScoringConfig(timeout=60.0, concurrency=2)) as scorer:
        scores = scorer(texts, ["p", "q"], {"solution": solution}, ids, TrainerState(3, 12))
    got = {name: values.view(-1).tolist() for name, values in scores.by_function.items()}
    flat = [tokens for row in ids for tokens in row]
    assert got["repetition"] == get_repetition_penalty_reward(ngram_size=2)(flat)
    assert got["overlong"] == get_soft_overlong_punishment(4, 2)(flat)
    assert got["doubled"] == [2.0] * 4
    assert got["logged"] == [0.25] * 4
    assert got["called"] == [7.0, 7.0, 1.0, 1.0]
    assert got["accuracy_reward"] == accuracy_reward([text for row in texts for text in row], solution * 2)
    assert scores.metrics == {"tokens": 13 / 4}
    assert scores.extras["count"] == [[3, 5], [4, 1]]
    assert scores.extras["solution"] == [solution, solution]
    assert scores.logged_of(1, 0)["logged"]["count"] == 4


def test_every_function_gets_columns_of_its_own(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def used_up(prompts, completions, answer, **columns):\n"
        "    rights = [float(left == [1, [2]]) for left in answer]\n"
        "    for left, message, prompt in zip(answer, completions, prompts):\n"
        "        rights[0] *= message[0]['content'] == 'a' and prompt[0]['content'] == 'q'\n"
        "        left[1].clear(); left.clear(); message[0].clear(); prompt.pop()['content'] = 'b'\n"
        "    return rights\n"
    )
    rewards = [RewardConfig(fn=f"{tmp_path}/mine.py:used_up")] * 2
    shared = [1, [2]]
    with Scorer(rewards) as scorer:
        for _ in range(2):
            message, prompt = [{"role": "assistant", "content": "a"}], [{"role": "user", "content": "q"}]
            scores = scorer([[message, message]] * 3, [prompt, prompt], {"answer": [shared, shared]})
            assert scores.rewards_NP.view(-1).tolist() == [2.0] * 6


def test_a_tool_in_a_session_of_its_own_ends_with_a_killed_trainer(tmp_path):
    (tmp_path / "zoo.py").write_text(ZOO)
    code = (
        "from eggroll_rl.config import RewardConfig; from eggroll_rl.scoring import Scorer\n"
        "import os, threading, time\n"
        f"scorer = Scorer([RewardConfig(fn='{tmp_path}/zoo.py:zoo')])\n"
        "threading.Thread(target=scorer, args=([['hang']], ['p'], {}), daemon=True).start()\n"
        "time.sleep(1.0); os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    psutil.wait_procs(left_behind(), timeout=3.0)
    assert not left_behind()


def test_what_rewards_log_is_in_the_records_of_a_generation(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def mine(completions, completion_ids, log_metric, log_extra, **columns):\n"
        "    log_metric('tokens', sum(map(len, completion_ids)))\n"
        "    log_extra('upper', [text.upper() for text in completions])\n"
        "    return [float(len(ids)) for ids in completion_ids]\n"
    )
    answers = [[Completion(f"a{n}{p}", tuple(range(n + p)), True) for p in range(2)] for n in range(4)]
    with Scorer([RewardConfig(fn=f"{tmp_path}/mine.py:mine")]) as scorer:
        scores = score_answers(scorer, answers, ["p", "q"], {})
    population = Population(0, 3, PopulationConfig(size=4))
    update, lap = Update(population, (0.0,) * 4, 0.1), Lap(1.0, 1.0)
    entry = entry_of(update, judged_answers(3, Batch(["p", "q"], {}, [0, 1]), answers, scores), lap)
    assert scores.rewards_NP.tolist() == [[0, 1], [1, 2], [2, 3], [3, 4]]
    assert entry.metrics["logged"] == {"tokens": 16.0}
    assert [sample["logged"] for sample in entry.samples] == [{"upper": "A00"}, {"upper": "A30"}]
