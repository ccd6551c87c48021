"""What the teachers of the embedded models write: right sums, no hit passed over, nothing tried twice, an answer."""

import re
from fractions import Fraction
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from eggroll_rl.config import DataConfig
from eggroll_rl.data.countdown import Countdown
from eggroll_rl.es.hashing import tensors_hash
from eggroll_rl.recipes import embedded
from eggroll_rl.recipes.embedded import batches, build_tokenizer
from eggroll_rl.recipes.search_streams import COUNTS, DIVERSE, LARGEST, answers_of, streams
from eggroll_rl.rewards.countdown import countdown, evaluate_expression

SHAPE = re.compile(r"<think>(.+) (no|yes)\.</think>\n<answer>(.+)</answer>")


@settings(deadline=None, max_examples=40)
@given(
    st.integers(2, 4).flatmap(lambda count: st.lists(st.integers(1, 15), min_size=count, max_size=count)),
    st.integers(1, 100),
    st.integers(0, 2**32),
)
def test_every_idea_is_worked_out_compared_and_new(numbers: list[int], target: int, seed: int) -> None:
    texts = streams(np.array([numbers] * 8), np.array([target] * 8), DIVERSE, np.random.default_rng(seed))
    for text in texts:
        match = SHAPE.fullmatch(text)
        assert match is not None
        thoughts, verdict, answer = match.groups()
        ideas = re.split(r" no\. ", thoughts)
        assert len(ideas) <= COUNTS[len(numbers)]
        values = []
        for idea in ideas:
            steps = [re.fullmatch(r"(\d+)([-+*/])(\d+)=(\d+)", step) for step in idea.split(" ")]
            assert len(steps) == len(numbers) - 1
            for step in steps:
                assert step is not None
                assert evaluate_expression(f"{step[1]}{step[2]}{step[3]}") == int(step[4]) <= LARGEST
            values.append(int(steps[-1][4]))  # type: ignore[index]
        assert target not in values[:-1]  # a hit is never passed over
        assert verdict == "yes" or values[-1] != target
        assert verdict == "no" or abs(values[-1] - target) <= 3
        assert evaluate_expression(answer) == Fraction(values[-1])
        assert sorted(map(int, re.findall(r"\d+", answer))) == sorted(numbers)
        assert countdown(["?"], [text], numbers=[numbers], target=[target]) == [float(values[-1] == target)]


def test_teachers_differ_in_patience_aim_and_care() -> None:
    """Of one problem: some stop at a near miss, some give up at once and some late, and some succeed."""
    texts = streams(np.array([[3, 7, 11, 2]] * 400), np.array([38] * 400), DIVERSE, np.random.default_rng(0))
    failures = [text.count(" no.") for text in texts]
    assert {0, 1, 6} <= set(failures)
    near = [text for text in texts if " yes." in text and "=38 yes." not in text]
    assert 0.02 < len(near) / len(texts) < 0.5
    assert 0.05 < sum("=38 yes." in text for text in texts) / len(texts) < 0.6


def test_streams_are_a_function_of_the_seed_and_fall_on_training_problems() -> None:
    problems = [Countdown(DataConfig(numbers=(3, 4)), "train")[index] for index in range(50)]
    first, again, other = (answers_of(problems, DIVERSE, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize(
    ("name", "steps", "cuts"), [("rwkv7-countdown", (1, 1), (2,)), ("llama-countdown", (3, 3), (3, 6))]
)
def test_a_build_gives_the_same_weights_again_and_where_it_was_cut_short(
    name: str, steps: tuple[int, int], cuts: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is cut in either course, one step after something was saved."""
    monkeypatch.setattr(embedded, "SAVED_EVERY", min(2, steps[0]))
    usual = embedded.Training.take

    def built(output: str, cut_after: int | None = None) -> str:
        taken = count(1)

        def take(training: embedded.Training, *batch: Tensor) -> float:
            if next(taken) == cut_after:
                raise InterruptedError
            return usual(training, *batch)

        monkeypatch.setattr(embedded.Training, "take", take)
        model = embedded.build(name, build_tokenizer(), tmp_path / output, steps, 1, (3e-3, 5e-3), "cpu")
        return tensors_hash(model.state_dict())

    whole = built("one")
    assert built("other") == whole
    for cut_after in cuts:
        with pytest.raises(InterruptedError):
            built("cut", cut_after)
        assert built("cut") == whole
        for saved in embedded.saved_beside(tmp_path / "cut"):
            saved.unlink(missing_ok=True)


def test_batches_go_on_where_they_were() -> None:
    """From any step on they are those of a run from the start; prompts carry no labels, and every stream ends."""
    tokenizer = build_tokenizer()
    straight = [next(made) for made in [batches(tokenizer, 4)] for _ in range(20)]
    for start in (1, 15, 16, 19):
        tokens, labels = next(batches(tokenizer, 4, start=start))
        assert tokens.tolist() == straight[start][0].tolist()
        assert labels.tolist() == straight[start][1].tolist()
    for tokens, labels in straight[:2]:
        for row, wanted in zip(tokens.tolist(), labels.tolist(), strict=True):
            answer = [token for token, label in zip(row, wanted, strict=True) if label >= 0]
            assert answer[-1] == tokenizer.eos_token_id
            assert tokenizer.decode(answer[:-1]).startswith("<think>")
            assert tokenizer.decode(row).startswith("Using the numbers [")


@pytest.mark.parametrize(
    "text", ["<think>15*6=90 90+7=97 no. 7-6=1 yes.</think>\n<answer>(15*6)+7</answer>", "no 1234?"]
)
def test_the_tokenizer_gives_back_what_it_took(text: str) -> None:
    tokenizer = build_tokenizer()
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
