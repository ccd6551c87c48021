"""One engine over the processes of ``accelerate launch`` or ``torchrun``.

The first process runs the training loop. All of them, the first included, answer for their share of the members and
take every update themselves. Prompts, answers and N floats are all that travels, and a state where one is loaded: by
gloo, whatever the device.
"""

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

from eggroll_rl.config import Recipe, SamplingConfig
from eggroll_rl.engines.base import Engine
from eggroll_rl.engines.build import build_in_process
from eggroll_rl.engines.fleet.heartbeat import connect, listen
from eggroll_rl.engines.fleet.sharing import (
    common_hash,
    generate_by_members,
    generate_by_prompts,
    join_answers,
    join_foretold,
    read_by_members,
)
from eggroll_rl.es.population import Population
from eggroll_rl.es.rollout import Completion, Foretold, Prompt, Saturation
from eggroll_rl.es.update import Update
from eggroll_rl.system.errors import UsageError

PATIENCE = timedelta(days=30)  # between two calls of the first process; if one process ends, the launcher ends all

T = TypeVar("T")


class Group:
    """The processes of a launch; sends from the first to all, and collects answers in the first."""

    def __init__(self, rank: int, size: int):
        self.rank, self.size = rank, size
        self._gloo = dist.new_group(backend="gloo", timeout=PATIENCE)
        self._answers, self._deadline = self._gloo, PATIENCE.total_seconds()

    def watch(self, deadline: float) -> None:
        """From now on, end the launch if a process takes longer than ``deadline`` seconds for an answer, or gives no
        sign of life for so long. Every process calls this."""
        self._answers, self._deadline = dist.new_group(backend="gloo", timeout=timedelta(seconds=deadline)), deadline
        if self.rank == 0:
            self.broadcast(listen(self.size - 1, deadline))
        else:
            connect(self.broadcast(), self.rank, deadline)

    def broadcast(self, message: Any = None) -> Any:
        """Send ``message`` from the first process to all; returns it in each."""
        box = [message]
        dist.broadcast_object_list(box, src=0, group=self._gloo)
        return box[0]

    def collect(self, answer: Any) -> list[Any]:
        """Send each process's ``answer`` to the first, and return them there by rank; elsewhere an empty list.

        Raises:
            UsageError: one takes longer than the deadline.
        """
        answers = [None] * self.size if self.rank == 0 else None
        began = time.monotonic()
        try:
            dist.gather_object(answer, answers, dst=0, group=self._answers)
        except RuntimeError as error:
            if time.monotonic() - began < self._deadline:
                raise
            raise UsageError(
                f"a process of the launch has not finished a call within {self._deadline:g} s (engine.deadline); "
                "generations in the journal are safe: raise it, or see what holds it up, and go on with --resume"
            ) from error
        return answers or []


@cache
def process_group() -> Group | None:
    """The launch that this process belongs to; None where it is alone."""
    state = PartialState(cpu=not torch.accelerator.is_available())
    return Group(state.process_index, state.num_processes) if state.num_processes > 1 else None


class _Call(NamedTuple):
    """A method of the engine, and its arguments by rank; ranks beyond have nothing to do."""

    method: str
    arguments: Sequence[Sequence[Any]]

    def run(self, engine: Engine, rank: int) -> Any:
        return getattr(engine, self.method)(*self.arguments[rank]) if rank < len(self.arguments) else None


class _Result(NamedTuple):
    """What the loop in the first process returned; ends the others."""

    value: Any


class GroupEngine(Engine):
    """The engine of the first process: each call runs in all processes, each with its share of the work."""

    def __init__(self, recipe: Recipe, group: Group):
        self.group = group
        group.broadcast(recipe)
        group.watch(recipe.engine.deadline)
        self.engine = build_in_process(recipe)
        self.batch_bytes = group.broadcast(self.engine.batch_bytes)

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingConfig,
        population: Population | None = None,
        members: range | None = None,
    ) -> list[list[Completion]]:
        size = self.group.size
        if population is not None:
            count = population.size if members is None else len(members)
            parts = generate_by_members(prompts, sampling, population, members, -(-count // size))
        else:
            parts = generate_by_prompts(prompts, sampling, -(-len(prompts) // size))
        return join_answers(self._call("generate", parts), population)

    def read(
        self,
        byte_ST: Tensor,
        state: Tensor | None = None,
        population: Population | None = None,
        members: range | None = None,
    ) -> Foretold:
        if population is None:
            return self.engine.read(byte_ST, state)
        count = population.size if members is None else len(members)
        parts = read_by_members(byte_ST, state, population, members, -(-count // self.group.size))
        return join_foretold(self._call("read", parts))

    def saturation(self, byte_ST: Tensor) -> Saturation:
        return self.engine.saturation(byte_ST)

    def measure_whitening(self, prompts: Sequence[Prompt], sampling: SamplingConfig) -> Mapping[str, Tensor]:
        return self.engine.measure_whitening(prompts, sampling)

    def apply(self, update: Update) -> float:
        return self._everywhere("apply", update)[0]

    def state_dict(self) -> Mapping[str, Tensor]:
        return self.engine.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._everywhere("load_state_dict", {name: tensor.cpu() for name, tensor in state.items()})

    def weights_hash(self) -> str:
        """The hash of the weights that all processes have.

        Raises:
            ReplicaMismatch: one has others.
        """
        return common_hash({f"process {rank}": found for rank, found in enumerate(self._everywhere("weights_hash"))})

    def save(self, folder: Path) -> None:
        self.engine.save(folder)

    def close(self) -> None:
        self._everywhere("close")

    def _everywhere(self, method: str, *arguments: Any) -> list[Any]:
        return self._call(method, [arguments] * self.group.size)

    def _call(self, method: str, arguments: Sequence[Sequence[Any]]) -> list[Any]:
        call = self.group.broadcast(_Call(method, arguments))
        return self.group.collect(call.run(self.engine, 0))[: len(arguments)]


def follow_first(group: Group) -> Any:
    """In any other process: build the engine and make the calls that the first process sends, until its loop returns.

    Signals are ignored here: this process ends with the first. Returns the result of the loop.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    engine: Any = None
    while not isinstance(message := group.broadcast(), _Result):
        if isinstance(message, Recipe):
            group.watch(message.engine.deadline)
            engine = build_in_process(message)
            engine.batch_bytes = group.broadcast()
        else:
            group.collect(message.run(engine, group.rank))
    return message.value


def run_in_first(loop: Callable[[], T]) -> T:
    """Run ``loop`` in the first process of a launch while the others make its engine's calls; all return its result."""
    group = process_group()
    if group is None:
        return loop()
    return group.broadcast(_Result(loop())).value if group.rank == 0 else follow_first(group)
