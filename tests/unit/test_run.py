"""The folder of a run: never overwritten, its numbers right, its lines readable by anyone."""

import inspect
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eggroll_rl import train
from eggroll_rl.config import PopulationConfig
from eggroll_rl.data.dataset import Batch
from eggroll_rl.es.population import Population
from eggroll_rl.es.rollout import Completion
from eggroll_rl.es.update import Update
from eggroll_rl.runs.clock import Lap
from eggroll_rl.runs.folder import RunFolder
from eggroll_rl.runs.metrics import entry_of, judged_answers
from eggroll_rl.scoring import Scores
from eggroll_rl.system.errors import UsageError

NAN = math.nan
N, P = 4, 2


def make_entry(rewards: list[list[float]], texts: str = "answer {member} {prompt}", generation: int = 7) -> Any:
    """A generation in which member i answers prompt j with i + j tokens, and ends by itself where j is 0."""
    rewards_NP = torch.tensor(rewards, dtype=torch.float64)
    completions = [
        [Completion(texts.format(member=i, prompt=j), tuple(range(i + j)), j == 0) for j in range(P)] for i in range(N)
    ]
    update = Update(Population(0, generation, PopulationConfig(size=N)), (1.0, 0.0, -1.0, 0.0), 0.25)
    scores = Scores(rewards_NP, {"one": rewards_NP, "two": rewards_NP + 1}, {"timeout": 3, "crash": 0})
    examples = Batch(["first?", "second?"], {"letter": ["a", "b"]}, [5, 6])
    return entry_of(update, judged_answers(generation, examples, completions, scores), Lap(2.0, 40.0))


def strict(text: str) -> Any:
    """JSON as others read it: NaN is none."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_the_numbers_of_a_generation() -> None:
    rewards = [[0.0, 1.0], [0.5, NAN], [1.0, 1.0], [NAN, NAN]]
    metrics = make_entry(rewards).metrics
    member = np.array([0.5, 0.5, 1.0])
    expected = {
        "generation": 7,
        "reward_mean": 3.5 / 5,
        "reward_std": member.std(),
        "reward_best_member": 1.0,
        "rewards": {"one": 3.5 / 5, "two": 3.5 / 5 + 1},
        "reward_failures": {"timeout": 3, "crash": 0},
        "finished": 0.5,
        "tokens": sum(i + j for i in range(N) for j in range(P)),
        "lr": 0.25,
        "seconds": 40.0,
        "seconds_generation": 2.0,
        "tokens_per_second": 8.0,
    }
    assert {name: metrics[name] for name in ("rewards", "reward_failures")} == {
        "rewards": pytest.approx(expected.pop("rewards")),
        "reward_failures": expected.pop("reward_failures"),
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)


def test_the_samples_are_the_first_the_last_and_the_best_member() -> None:
    entry = make_entry([[0.0, 0.0], [0.25, 1.0], [1.0, 0.0], [NAN, 0.0]])
    assert entry.samples == [
        {"generation": 7, "member": member, "prompt": "first?", "completion": f"answer {member} 0", "reward": reward}
        for member, reward in ((0, 0.0), (3, None), (1, 0.25))
    ]
    best_is_first = make_entry([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    assert [sample["member"] for sample in best_is_first.samples] == [0, 3]


@pytest.mark.parametrize("rewards", [[[NAN, NAN]] * N, [[1.0, NAN], *[[NAN, NAN]] * 3]])
def test_records_without_rewards_are_json(tmp_path: Path, rewards: list[list[float]]) -> None:
    run = RunFolder(tmp_path)
    run.log_generation(make_entry(rewards), update_rms=1e-3)
    record = strict((tmp_path / "metrics.jsonl").read_text())
    assert record["reward_mean"] == (None if math.isnan(rewards[0][0]) else 1.0)
    assert record["update_rms"] == 1e-3
    assert run.metrics() == [record]


@pytest.mark.parametrize("text", ["ünï → 終 \u2028 {member}", 'a "quote"\n\\ and a tab\t', "half \ud83d of a pair"])
def test_every_answer_makes_one_line(tmp_path: Path, text: str) -> None:
    run = RunFolder(tmp_path)
    for generation in range(2):
        run.log_generation(make_entry([[1.0, 1.0]] * N, text, generation), update_rms=0.0)
    lines = (tmp_path / "samples.jsonl").read_bytes().split(b"\n")
    assert lines.pop() == b""
    samples = [strict(line.decode()) for line in lines]
    assert [sample["completion"] for sample in samples] == [text.format(member=i, prompt=0) for i in (0, 3)] * 2
    assert [record["generation"] for record in run.metrics()] == [0, 1]


def test_an_existing_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    RunFolder(tmp_path / "absent").refuse_unusable()
    RunFolder(tmp_path).refuse_unusable()  # empty
    file = tmp_path / "something.txt"
    file.write_text("mine")
    for path in (tmp_path, file):
        with pytest.raises(UsageError, match=r"exists and is never overwritten: choose another output_dir=.*or remove"):
            RunFolder(path).refuse_unusable()
    assert file.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UsageError, match=r"nothing can be written into .*file; choose another output_dir"):
        RunFolder(file / "runs" / "one").refuse_unusable()


def test_the_loop_fits_a_screen() -> None:
    assert len(inspect.getsource(train.evolve).splitlines()) <= 40
