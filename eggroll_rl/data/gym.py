"""Problems of the package reasoning-gym, any of its tasks by name: ``data.name=reasoning-gym:TASK``."""

import difflib
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

from eggroll_rl.config import DataConfig
from eggroll_rl.data.generated import Problems, Split, in_test_split
from eggroll_rl.system.errors import UsageError

PREFIX = "reasoning-gym:"
PROMPT = "{question}\nShow your work in <think> </think> tags and the final answer in <answer> </answer> tags.\n"
MOST_REJECTED = 1000  # items in a row of which none belongs to the split before a task counts as empty
REFUSED = {"codeio": "it executes collected programs", "composite": "name one of its parts"}


class ReasoningGym(Problems):
    """A deterministic sequence of a task's items.

    The columns are ``prompt`` and what the reward ``reasoning_gym`` reads: ``question``, ``answer``, ``metadata`` and
    ``options``. ``data.options`` configure the task by its own names. Problem ``index`` of a split is a pure function
    of the recipe. The splits are disjoint by a hash of the question, whatever the options; test problems are distinct.

    Raises:
        UsageError: no such task, an option does not fit, or the package is not installed.
    """

    def __init__(self, config: DataConfig, split: Split, series: int = 0):
        super().__init__(split, series)
        self.task = config.name.removeprefix(PREFIX)
        self.options = dict(config.options)
        self._create = _creator(self.task)
        try:
            self._item(0)
        except (TypeError, ValueError, AssertionError, KeyError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UsageError(f"data.options={self.options} do not fit {config.name}: {reason}") from error

    def _key(self, problem: dict[str, Any]) -> str:
        return problem["question"]

    def _exhausted(self, count: int) -> str:
        return (
            f"{PREFIX}{self.task} holds only {count} held-out problems with data.options={self.options}; "
            f"widen them, or ask for so many"
        )

    def _draws(self, stream: str) -> Iterator[dict[str, Any]]:
        """Problems of this split from one stream of seeds."""
        number, rejected = 0, 0
        while rejected <= MOST_REJECTED:
            seed = int.from_bytes(blake2b(f"{stream} {number}".encode(), digest_size=4).digest()) // 2  # below 2**31
            item = self._item(seed)
            number, rejected = number + 1, rejected + 1
            if in_test_split(item["question"]) == (self.split == "test"):
                rejected = 0
                prompt = PROMPT.format(question=item["question"].strip())
                yield {"prompt": prompt, **item, "options": self.options}
        raise UsageError(
            f"{PREFIX}{self.task} has no {self.split} problem with data.options={self.options}; widen them"
        )

    def _item(self, seed: int) -> dict[str, Any]:
        item = self._create(self.task, **{**self.options, "seed": seed, "size": 1})[0]
        return {key: item[key] for key in ("question", "answer", "metadata")}


def _creator(task: str) -> Any:
    try:
        from reasoning_gym.factory import DATASETS, create_dataset
    except ModuleNotFoundError as error:
        if error.name != "reasoning_gym":
            raise
        raise UsageError(f"{PREFIX}{task} needs a package: pip install 'eggroll-rl[reasoning-gym]'") from error
    if task in REFUSED:
        raise UsageError(f"{PREFIX}{task} is not offered: {REFUSED[task]}; choose another task")
    if task not in DATASETS:
        near = difflib.get_close_matches(task, DATASETS, n=1)
        hint = f"did you mean {PREFIX}{near[0]}?" if near else f"there is {', '.join(sorted(DATASETS))}"
        raise UsageError(f"reasoning-gym has no task {task!r}; {hint}")
    return create_dataset
