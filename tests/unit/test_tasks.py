"""A task that another package brings: it is found by its name, asked, and held out as our own are."""

from pathlib import Path

import pytest

from eggroll_rl.config import DataConfig
from eggroll_rl.data.dataset import load_data
from eggroll_rl.system.errors import UsageError

SUMS = """
import random
from eggroll_rl.data.generated import Problems, in_test_split

class Sums(Problems):
    def __init__(self, config, split, series=0):
        super().__init__(split, series)

    def _draws(self, stream):
        rng = random.Random(stream)
        while True:
            one, other = rng.randint(1, 99), rng.randint(1, 99)
            problem = {"prompt": f"{one} + {other} = ", "answer": str(one + other)}
            if in_test_split(self._key(problem)) == (self.split == "test"):
                yield problem

    def _key(self, problem):
        return problem["prompt"]

    def _exhausted(self, count):
        return f"no more than {count} sums"
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package with two entry points, one of which leads nowhere."""
    (tmp_path / "sums_of_others.py").write_text(SUMS)
    info = tmp_path / "sums_of_others-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sums-of-others\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[eggroll_rl.tasks]\nsums = sums_of_others:Sums\nbroken = sums_of_others:Nothing\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("package")
def test_a_task_of_another_package_is_asked_by_its_name() -> None:
    data = load_data(DataConfig(name="sums", prompts=4), seed=0)
    first, again = data.batch(0), load_data(DataConfig(name="sums", prompts=4), seed=0).batch(0)
    assert first == again
    for prompt, answer in zip(first.prompts, first.columns["answer"], strict=True):
        one, other = str(prompt).removesuffix(" = ").split(" + ")
        assert int(one) + int(other) == int(answer)
    held_out = set(map(str, data.test(50).prompts))
    trained = {str(prompt) for generation in range(100) for prompt in data.batch(generation).prompts}
    assert len(held_out) == 50
    assert not held_out & trained


@pytest.mark.usefixtures("package")
def test_a_task_that_does_not_load_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"data\.name=broken: sums_of_others:Nothing does not load: .*Nothing"):
        load_data(DataConfig(name="broken"), seed=0)
