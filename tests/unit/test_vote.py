"""Of several answers to a problem, that of the majority."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eggroll_rl.runs.vote import elected


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["<answer>1</answer>", "so <answer> 2 </answer>", "<answer>2</answer>"], 1),
        (["<answer>1</answer>", "<answer>2</answer>"], 0),
        (["<answer>2</answer> no <answer>1</answer>", "<answer>2</answer>", "x <answer>1</answer>"], 0),
        (["on and on", "on and on", "<answer>3</answer>"], 2),
        ([r"\boxed{5}", r"it is \boxed{ 4 }", r"\boxed{4}"], 1),
        (["1\n#### 7", "2\n#### 8", "3\n#### 8"], 1),
        ([r"\boxed{\frac{1}{2}}", r"\boxed{ \frac{1}{2} }", r"\boxed{3}"], 0),
        (["<answer>7</answer>\n#### done", "<answer>8</answer>\n#### done", "<answer>8</answer>"], 1),
        (["yes", "no", "no "], 1),
        ([""], 0),
    ],
)
def test_most_voters_are_right(texts: list[str], expected: int) -> None:
    assert elected(texts) == expected


@given(st.lists(st.sampled_from(["<answer>1</answer>", "<answer>2</answer>", "<answer>3</answer>", "none"])))
def test_who_is_elected_has_as_many_votes_as_anyone(texts: list[str]) -> None:
    texts = [*texts, "<answer>1</answer>"]
    votes = {text: texts.count(text) for text in texts if text != "none"}
    assert votes[texts[elected(texts)]] == max(votes.values())
