"""Shares of right answers and their intervals, against formulas and brute force."""

import contextlib
import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from benchmarks.tiny_task import write_task
from eggroll_rl import train
from eggroll_rl.config import DataConfig, Recipe, RewardConfig, SamplingConfig, load_recipe
from eggroll_rl.data.dataset import Batch, load_data
from eggroll_rl.engines.local.engine import LocalEngine
from eggroll_rl.es.population import Population
from eggroll_rl.es.rollout import Completion, Prompt
from eggroll_rl.eval.evaluate import Questions, evaluate_model
from eggroll_rl.runs.evaluation import (
    accuracy_reward,
    as_trl,
    data_hash,
    evaluate,
    evaluate_samples,
    gained_and_lost,
    pass_at_k,
    wilson_interval,
)
from eggroll_rl.scoring import Scorer, Scores
from eggroll_rl.system.errors import UsageError

SAMPLING = SamplingConfig(temperature=1.0)


class Answering:
    """An engine that answers the prompt ``"ab"`` by "a", then "b", then "a" again, and so on."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def generate(self, prompts: Sequence[str], sampling: SamplingConfig) -> list[list[Completion]]:
        assert sampling is SAMPLING
        answers = []
        for prompt in prompts:
            answers.append(Completion(prompt[self.asked.count(prompt) % len(prompt)], (), True))
            self.asked.append(prompt)
        return [answers]


def grade(completions: list[list[Any]], prompts: Sequence[Prompt], columns: dict[str, list[Any]], *run: Any) -> Scores:
    """1 for the right letter, NaN for a question mark, 0.5 for any other; None where the row has no letter."""
    pairs = zip(completions[0], columns["letter"], strict=True)
    rewards = [math.nan if answer == "?" else 1.0 if answer == letter else 0.5 for answer, letter in pairs]
    assert len(prompts) == len(rewards)
    unjudged = torch.tensor([[letter is None for letter in columns["letter"]]], dtype=torch.bool)
    rewards_NP = torch.tensor([rewards], dtype=torch.float64).masked_fill(unjudged, math.nan)
    return Scores(rewards_NP, {}, {}, unjudged_NP=unjudged)


GRADER: Any = grade  # stands in for a Scorer


def batch(prompts: Sequence[str], letter: str = "a") -> Batch:
    return Batch(list(prompts), {"letter": [letter] * len(prompts)}, list(range(len(prompts))))


@pytest.mark.parametrize("n", [1, 2, 7, 100, 512])
def test_intervals_are_wilsons(n: int) -> None:
    for successes in {0, 1, n // 3, n // 2, n - 1, n}:
        for end in wilson_interval(successes, n):  # where the score test just rejects
            assert abs(successes / n - end) == pytest.approx(
                1.959964 * math.sqrt(end * (1 - end) / n), rel=1e-6, abs=1e-9
            )


def test_a_share_lies_in_its_interval_to_the_bit() -> None:
    for n in range(1, 300):
        for successes in (0, n // 2, n):
            low, high = wilson_interval(successes, n)
            assert 0 <= low <= successes / n <= high <= 1


def test_nothing_is_known_from_no_problem() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer() -> None:
    for samples in range(1, 8):
        for right, k in itertools.product(range(samples + 1), range(1, samples + 1)):
            subsets = list(itertools.combinations([True] * right + [False] * (samples - right), k))
            assert pass_at_k(samples, right, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_accuracy_counts_whole_rewards() -> None:
    """A half is wrong, and so is a reward that failed."""
    engine: Any = Answering()
    result = evaluate(engine, batch(["a", "b", "a", "?", "c"]), GRADER, SAMPLING)
    assert result.correct == (True, False, True, False, False)
    assert result.completions == ("a", "b", "a", "?", "c")
    expected = binomtest(2, 5).proportion_ci(0.95, method="wilson")
    assert result.summary() == pytest.approx({"accuracy": 0.4, "low": expected.low, "high": expected.high, "n": 5})
    assert str(result) == f"40.0% [{expected.low:.1%}, {expected.high:.1%}] of 5"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("a?b"), st.sampled_from(["a", None])), min_size=1))
def test_rows_without_a_reward_change_nothing(rows: list[tuple[str, str | None]]) -> None:
    """Accuracy and pass@k are those of the rows that have a reward, alone."""
    judged = [row for row in rows if row[1] is not None]
    results = []
    for some in (rows, judged):
        problems = Batch([prompt for prompt, _ in some], {"letter": [letter for _, letter in some]}, [])
        first: Any = Answering()
        result = evaluate(first, problems, GRADER, SAMPLING)
        assert [right is None for right in result.correct] == [letter is None for _, letter in some]
        results.append(result.summary())
    assert results[0]["n"] == len(judged)
    assert results[0] == results[1]


def test_samples_without_a_reward_count_nowhere() -> None:
    problems = Batch(["aa", "ab", "bb", "aa"], {"letter": ["a", "a", "a", None]}, [])
    engine: Any = Answering()
    assert evaluate_samples(engine, problems, GRADER, SAMPLING, 2) == pytest.approx(
        {"pass@1": 0.5, "pass@2": 2 / 3, "maj@2": 2 / 3}
    )
    nothing = Batch(["aa"], {"letter": [None]}, [])
    assert evaluate_samples(engine, nothing, GRADER, SAMPLING, 2) == {"pass@1": 0.0, "pass@2": 0.0, "maj@2": 0.0}


def test_the_scorer_tells_what_does_not_apply_from_what_failed(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def mine(completions, letter, **columns):\n"
        "    return [None if l is None else float('nan') if c == '?' else 1.0 for c, l in zip(completions, letter)]\n"
    )
    problems = Batch(["a", "?", "a", "?"], {"letter": ["a", "a", None, None]}, [])
    engine: Any = Answering()
    with Scorer([RewardConfig(fn=f"{tmp_path}/mine.py:mine")]) as scorer:
        result = evaluate(engine, problems, scorer, SAMPLING)
    assert result.correct == (True, False, None, None)
    assert (result.accuracy, result.n) == (0.5, 2)


@pytest.mark.parametrize(("samples", "ks"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (4, [1, 2, 4]), (6, [1, 2, 4, 6])])
def test_pass_at_k_of_an_engine(samples: int, ks: list[int]) -> None:
    prompts = ["aaaaaa", "ab", "bbba", "????a?"]
    engine: Any = Answering()
    result = evaluate_samples(engine, batch(prompts), GRADER, SAMPLING, samples)
    assert engine.asked == [prompt for prompt in prompts for _ in range(samples)]
    letters = [[prompt[index % len(prompt)] for index in range(samples)] for prompt in prompts]
    answers = [[letter == "a" for letter in row] for row in letters]
    expected = {
        f"pass@{k}": sum(
            sum(map(any, itertools.combinations(row, k))) / math.comb(samples, k) for row in answers
        ) / len(prompts)
        for k in ks
    }  # fmt: skip
    assert result.pop(f"maj@{samples}") == sum(max(row, key=row.count) == "a" for row in letters) / len(prompts)
    assert result == pytest.approx(expected)


def test_completions_take_the_form_of_their_prompts() -> None:
    chat = [{"role": "user", "content": "hi"}]
    answers = [[Completion("x", (1,), True), Completion("y", (2,), True)] for _ in range(2)]
    assert as_trl(answers, ["text", chat]) == [["x", [{"role": "assistant", "content": "y"}]]] * 2


def test_which_reward_judges() -> None:
    rewards = ({"fn": "mine.py:first", "weight": 3.0}, {"fn": "mine.py:second"})
    recipe = Recipe(model="m", rewards=rewards)
    assert accuracy_reward(recipe).fn == "eggroll_rl.rewards.countdown:countdown"
    elsewhere = Recipe(model="m", rewards=rewards, data={"name": "rows.jsonl"})
    assert (accuracy_reward(elsewhere).fn, accuracy_reward(elsewhere).weight) == ("mine.py:first", 1.0)
    chosen = Recipe(model="m", rewards=rewards, evaluation={"reward": "mine.py:judge"})
    assert accuracy_reward(chosen).fn == "mine.py:judge"


# What is hashed, and what is asked.

GSM8K = [
    {"question": f"What is {n} + {n}?", "answer": f"{n} + {n} = <<{n}+{n}={2 * n}>>{2 * n}\n#### {2 * n}"}
    for n in range(6)
]
MATH = [{"problem": f"Halve {n}.", "solution": f"\\boxed{{{n}/2}}", "answer": f"\\frac{{{n}}}{{2}}"} for n in range(6)]
LETTERS = [{"asked": f"{n}?", "letter": "aeio"[n % 4]} for n in range(6)]
REWARD = """
def own_letter(prompts, completions, letter, **columns):
    return [float(mine in text) for text, mine in zip(completions, letter)]
"""


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    for name, rows in (("gsm8k", GSM8K), ("math", MATH), ("letters", LETTERS)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.py").write_text(REWARD)
    return tmp_path


def ask(folder: Path, model: Path | str, task: str | None, *questions: Any, **options: Any) -> dict[str, Any]:
    with contextlib.chdir(folder):
        return evaluate_model(str(model), task, n=4, max_new_tokens=6, questions=Questions(*questions), **options)


def test_a_hash_names_prompts_and_columns() -> None:
    one = Batch(["a", "b"], {"x": [{"t": (1, 2), "s": {"q", "p"}}, None]}, [0, 1])
    assert data_hash(one) == data_hash(Batch(["a", "b"], {"x": [{"t": [1, 2], "s": {"p", "q"}}, None]}, [7, 8]))
    others = [
        Batch(["a", "c"], one.columns, [0, 1]),
        Batch(["a", "b"], {"y": one.columns["x"]}, [0, 1]),
        Batch(["a", "b"], {"x": [{"t": (1, 3), "s": {"q", "p"}}, None]}, [0, 1]),
    ]
    assert len({data_hash(batch) for batch in [one, *others]}) == 4


def test_two_evaluations_of_one_model_agree_exactly(desk: Path, model_folder: Callable[[str], Path]) -> None:
    first, again = (ask(desk, model_folder("llama"), "gsm8k", "gsm8k.jsonl", samples=2) for _ in range(2))
    assert first == again
    assert (first["n"], first["task"]) == (4, "gsm8k")
    assert first["reward"] == "eggroll_rl.rewards.gsm8k:gsm8k"
    assert first["data"]["prompt"].startswith("{question}")
    assert len(first["model_sha256"]) == len(first["data_sha256"]) == 64
    other = ask(desk, model_folder("qwen2"), "gsm8k", "gsm8k.jsonl")
    assert other["model_sha256"] != first["model_sha256"]
    assert other["data_sha256"] == first["data_sha256"]


def test_the_engine_is_closed_whatever_happens(
    desk: Path, model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    close = Mock()
    monkeypatch.setattr(LocalEngine, "close", close)
    evaluate_model(str(model_folder("llama")), n=2, max_new_tokens=4)
    assert close.call_count == 1

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalEngine, "generate", fail)
    with pytest.raises(KeyboardInterrupt):
        evaluate_model(str(model_folder("llama")), n=2, max_new_tokens=4)
    assert close.call_count == 2


def test_any_data_and_any_reward(desk: Path, model_folder: Callable[[str], Path]) -> None:
    """Whole files are asked, in their order; a model that babbles finds some letters."""
    result = ask(desk, model_folder("llama"), None, "letters.jsonl", None, None, "asked", "mine.py:own_letter")
    batch = Batch([row["asked"] for row in LETTERS[:4]], {"letter": [row["letter"] for row in LETTERS[:4]]}, [])
    assert (result["task"], result["n"]) == (None, 4)
    with_prompt = batch._replace(columns={**batch.columns, "prompt": batch.prompts})
    assert result["data_sha256"] == data_hash(with_prompt)
    templated = ask(desk, model_folder("llama"), None, "letters.jsonl", None, "{asked}", None, "mine.py:own_letter")
    assert templated["accuracy"] == result["accuracy"]
    chat = ask(desk, model_folder("llama"), None, "letters.jsonl", None, "{asked}", None, "mine.py:own_letter", True)
    assert chat["data"]["prompt"] == [{"role": "user", "content": "{asked}"}]
    assert chat["data_sha256"] != templated["data_sha256"]


def test_mathematics_and_reasoning_gym(desk: Path, model_folder: Callable[[str], Path]) -> None:
    asked = ask(desk, model_folder("llama"), "math", "math.jsonl")
    assert (asked["accuracy"], asked["n"]) == (0.0, 4)
    assert asked["data"]["prompt"].endswith("\\boxed{{}}.\n")
    train, test = (
        ask(desk, model_folder("llama"), "reasoning-gym:chain_sum", split=split) for split in ("train", "test")
    )
    assert train["data_sha256"] != test["data_sha256"]
    assert test["reward"] == "eggroll_rl.rewards.reasoning_gym:reasoning_gym"


@pytest.mark.parametrize(
    ("column", "questions", "overrides"),
    [
        ("numbers", (), ()),
        ("nums", (), ("data.columns.numbers=nums",)),
        ("numbers", (None, None, "prompt"), ()),
        ("other", (None, None, None), ()),
    ],
)
@pytest.mark.parametrize("is_run", [False, True])
def test_countdown_problems_of_a_file_are_asked_as_the_generated_ones_are(
    desk: Path,
    model_folder: Callable[[str], Path],
    column: str,
    questions: tuple[Any, ...],
    overrides: tuple[str, ...],
    is_run: bool,
) -> None:
    problems = load_data(DataConfig(), 0).test(4)
    rows = [
        {column: numbers, "target": target} | ({"prompt": prompt} if questions else {})
        for prompt, numbers, target in zip(
            problems.prompts, problems.columns["numbers"], problems.columns["target"], strict=True
        )
    ]
    (desk / "public.json").write_text(json.dumps(rows))
    (desk / "see.py").write_text(SEEING)
    model, task = model_folder("llama"), "countdown"
    if is_run:
        (desk / "model").symlink_to(model)
        rewards = [{"fn": "eggroll_rl.rewards.countdown:countdown"}]
        (desk / "recipe.yaml").write_text(json.dumps({"model": str(model), "rewards": rewards}))
        model, task = desk, None
    ask(desk, model, task, "public.json", *(questions or (None,) * 3), "see.py:see", overrides=overrides)
    assert json.loads((desk / "seen.json").read_text()) == problems.prompts


def test_a_run_is_asked_its_own_problems(desk: Path, model_folder: Callable[[str], Path]) -> None:
    run = desk / "run"
    (run).mkdir()
    (run / "model").symlink_to(model_folder("llama"))
    recipe = {
        "model": "m",
        "data": {"name": "letters.jsonl", "columns": {"prompt": "asked"}},
        "rewards": [{"fn": "mine.py:own_letter"}],
        "sampling": {"max_new_tokens": 3, "stop": ["."]},
    }
    (run / "recipe.yaml").write_text(json.dumps(recipe))
    own = ask(desk, run, None)
    assert (own["task"], own["reward"], own["stop"]) == ("letters.jsonl", "mine.py:own_letter", ["."])
    assert own["n"] < 4  # those that were held out of training
    assert ask(desk, run, "countdown")["task"] == "countdown"
    (run / "recipe.yaml").write_text(json.dumps(recipe | {"model": str(model_folder("qwen3"))}))
    before = ask(desk, run, None, base=True)
    assert (before["model"], before["data_sha256"]) == (str(model_folder("qwen3")), own["data_sha256"])
    assert before["model_sha256"] != own["model_sha256"]


@pytest.mark.parametrize(
    ("task", "questions", "options", "expected"),
    [
        ("gsm9k", (), {}, "no task 'gsm9k'; there is countdown, gsm8k, math and reasoning-gym:NAME"),
        ("reasoning-gym:chain_summ", (), {}, "no task 'chain_summ'; did you mean reasoning-gym:chain_sum"),
        (None, ("letters.jsonl",), {}, "data 'letters.jsonl' needs a reward"),
        (None, ("absent.jsonl", None, "{q}", None, "mine.py:own_letter"), {}, "no file absent.jsonl"),
        ("gsm8k", ("gsm8k.jsonl", None, "{question}", "question"), {}, "the template or the column, not both"),
        ("gsm8k", ("letters.jsonl",), {}, "data.prompt names a column 'question' that does not exist"),
        ("gsm8k", ("gsm8k.jsonl",), {"split": "train"}, "no split 'train'; take test"),
        ("countdown", (None, "main"), {}, "subset='main' is one of a dataset"),
        ("countdown", (), {"base": True}, "is no run folder: only a run has a base model"),
        ("countdown", (), {"split": "dev"}, "no split 'dev'; take train or test"),
    ],
)
def test_mistakes_are_told_before_a_model_is_loaded(
    desk: Path,
    model_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    task: str | None,
    questions: tuple[Any, ...],
    options: dict[str, Any],
    expected: str,
) -> None:
    monkeypatch.setattr("eggroll_rl.eval.evaluate.load_model", lambda name: pytest.fail("a model is loaded"))
    with pytest.raises(UsageError) as error:
        ask(desk, model_folder("llama"), task, *questions, **options)
    assert expected in str(error.value)


SEEING = """
import json
def see(prompts, completions, **columns):
    with open("seen.json", "w") as file:
        json.dump(prompts, file)
    return [1.0] * len(prompts)
"""


def test_a_run_is_asked_on_other_data_as_on_its_own(desk: Path, model_folder: Callable[[str], Path]) -> None:
    run = desk / "run"
    run.mkdir()
    (run / "model").symlink_to(model_folder("llama"))
    (desk / "see.py").write_text(SEEING)
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "{asked}"}]
    recipe = {
        "model": "m",
        "engine": {"dtype": "bfloat16", "max_rows": 3, "pool": {"replicas": 2}},
        "data": {"name": "letters.jsonl", "prompt": chat},
        "rewards": [{"fn": "see.py:see"}],
        "sampling": {"max_new_tokens": 3, "stop": ["a", "e"]},
    }
    (run / "recipe.yaml").write_text(json.dumps(recipe))
    (desk / "other.jsonl").write_text('{"asked": "something else"}\n')
    result = ask(desk, run, None, "other.jsonl")
    assert json.loads((desk / "seen.json").read_text()) == [[chat[0], {"role": "user", "content": "something else"}]]
    assert (result["stop"], result["reward"], result["dtype"]) == (["a", "e"], "see.py:see", "bfloat16")
    (desk / "renamed.jsonl").write_text('{"question": "a third"}\n')
    changes = ["data.columns.asked=question", "engine.dtype=float32", "sampling.stop=[]"]
    result = ask(desk, run, None, "renamed.jsonl", overrides=changes)
    assert json.loads((desk / "seen.json").read_text())[0][1]["content"] == "a third"
    assert (result["stop"], result["dtype"]) == ([], "float32")


@pytest.mark.parametrize("prompt", [None, "{prompt}"])
@pytest.mark.parametrize("chat", [True, False])
def test_a_column_of_chats_is_asked_as_it_is(
    desk: Path, model_folder: Callable[[str], Path], prompt: str | None, chat: bool
) -> None:
    messages = [{"role": "system", "content": "Be {brief}."}, {"role": "user", "content": "1 + 1?"}]
    (desk / "chats.jsonl").write_text(json.dumps({"prompt": messages}) + "\n")
    (desk / "see.py").write_text(SEEING)
    ask(desk, model_folder("llama"), None, "chats.jsonl", None, prompt, None, "see.py:see", chat)
    assert json.loads((desk / "seen.json").read_text()) == [messages]


def test_a_chat_is_never_put_into_a_text(desk: Path, model_folder: Callable[[str], Path]) -> None:
    (desk / "chats.jsonl").write_text(json.dumps({"prompt": [{"role": "user", "content": "?"}]}) + "\n")
    with pytest.raises(UsageError, match=r"column 'prompt' holds a chat, and data\.prompt puts it into a text"):
        ask(desk, model_folder("llama"), None, "chats.jsonl", None, "Q: {prompt}", None, "mine.py:own_letter")


def test_problems_gained_and_lost() -> None:
    assert gained_and_lost("0011-", "0101-") == {"gained": 1, "lost": 1}
    assert gained_and_lost("000", "110") == {"gained": 2, "lost": 0}


def test_a_run_measures_what_it_does_not_train_and_what_it_gains(tmp_path: Path) -> None:
    """Accuracy rises by what is gained and not lost; a prompt of which more samples are drawn takes more tokens."""
    recipe = write_task(tmp_path)
    other = (
        "{data: {name: $/train.jsonl, test_name: $/test.jsonl, prompt: '{text}?'}, reward: '$/reward.py:late', n: 3}"
    )
    overrides = ["generations=4", "evaluation.every=2", f"output_dir={tmp_path / 'run'}", "fitness.samples=2"]
    overrides += ["sampling.temperature=1", "fitness.objective=max", f"retention={other.replace('$', str(tmp_path))}"]
    run = train.train(load_recipe(recipe, overrides))
    marks = [record for record in run.metrics() if "accuracy" in record]
    assert [mark["generation"] for mark in marks] == [0, 2, 4]
    assert all(0 <= mark["retention"] <= 1 and mark["gained"] >= 0 and mark["lost"] >= 0 for mark in marks[1:])
    for mark in marks[1:]:
        assert mark["accuracy"] - marks[0]["accuracy"] == pytest.approx((mark["gained"] - mark["lost"]) / mark["n"])
    asked = ["generations=4", f"output_dir={tmp_path / 'plain'}"]
    plain = train.train(load_recipe(recipe, asked))
    tokens = [next(r["tokens"] for r in each.metrics() if "tokens" in r) for each in (run, plain)]
    assert tokens[0] > tokens[1]  # each prompt is answered twice


def test_held_out_answers_may_be_longer_than_those_in_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: set[tuple[bool, int]] = set()

    class Listening(LocalEngine):
        def generate(
            self, prompts: Any, sampling: SamplingConfig, population: Population | None = None, members: Any = None
        ) -> list[list[Completion]]:
            asked.add((population is not None, sampling.max_new_tokens))
            return super().generate(prompts, sampling, population, members)

    monkeypatch.setattr("eggroll_rl.engines.local.engine.LocalEngine", Listening)
    recipe = write_task(tmp_path)
    lengths = ["sampling.max_new_tokens=3", "evaluation.max_new_tokens=7", f"output_dir={tmp_path / 'run'}"]
    run = train.train(load_recipe(recipe, ["generations=1", "population.whitening=null", *lengths]))
    assert asked == {(True, 3), (False, 7)}
    assert evaluate_model(str(run.path), n=3)["max_new_tokens"] == 7


def test_a_run_is_evaluated_on_its_half_of_the_held_out_problems(tmp_path: Path) -> None:
    """What settings were tuned on is no evidence of what came of them."""
    overrides = ["generations=1", "evaluation.half=judgement", f"output_dir={tmp_path / 'run'}"]
    run = train.train(load_recipe(write_task(tmp_path), overrides))
    judged = evaluate_model(str(run.path))
    assert judged["half"] == "judgement"
    tuned = evaluate_model(str(run.path), overrides=["evaluation.half=tuning"])
    assert judged["data_sha256"] != tuned["data_sha256"]
    assert judged["n"] + tuned["n"] == evaluate_model(str(run.path), overrides=["evaluation.half=null"])["n"]
    for idle in ("n=5", "max_new_tokens=9", "marks=3"):
        with pytest.raises(UsageError, match=f"evaluation.{idle.partition('=')[0]} is of a run"):
            evaluate_model(str(run.path), overrides=[f"evaluation.{idle}"])


def test_of_training_problems_each_is_asked_once(tmp_path: Path) -> None:
    run = train.train(load_recipe(write_task(tmp_path), ["generations=1", f"output_dir={tmp_path / 'run'}"]))
    rows = len((tmp_path / "train.jsonl").read_text().splitlines())
    assert evaluate_model(str(run.path), split="train", n=10 * rows)["n"] == rows


@pytest.mark.parametrize("temperature", [0.0, math.nan, math.inf, 1e9])
def test_a_temperature_that_cannot_be_is_refused_before_a_model_is_loaded(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eggroll_rl.eval.evaluate.load_model", None)
    with pytest.raises(UsageError, match="temperature"):
        evaluate_model("embedded:rwkv7-countdown", samples=2, temperature=temperature, n=1)
