"""Replicas of an engine in Ray actors, on one machine or many, behind the calls of one engine.

Members are dealt out in chunks to whichever replica is free. Weights do not travel with an update: each replica takes
the N floats itself. A replica that dies or stalls loses its chunk to another, and a new one takes its place once it has
caught up; replicas for which the cluster has no room yet join when it has.
"""

import logging
import statistics
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import RayError, RayTaskError
from torch import Tensor

from eggroll_rl.config import PoolConfig, Recipe, SamplingConfig
from eggroll_rl.engines.base import Engine
from eggroll_rl.engines.fleet.cluster import Actors, is_alive, join_cluster
from eggroll_rl.engines.fleet.replica import Replica
from eggroll_rl.engines.fleet.sharing import (
    common_hash,
    generate_by_members,
    generate_by_prompts,
    join_answers,
    join_foretold,
    portion,
    read_by_members,
)
from eggroll_rl.es.population import Population
from eggroll_rl.es.rollout import Completion, Foretold, Prompt, Saturation
from eggroll_rl.es.update import Update
from eggroll_rl.system.errors import UsageError

TICK = 1.0  # seconds between looks at who stalls
LIVES = 3  # replicas that may be lost in one place in a row without an answer
LOST = object()  # in place of an answer

logger = logging.getLogger(__name__)


class PoolError(UsageError):
    """No replica stays alive."""


@dataclass(eq=False)
class _Place:
    """One of the pool's places, and the replica in it."""

    number: int
    actor: Any
    joining: ObjectRef | None  # the step before it is ready: to find room, load, or catch up; None: ready
    where: str = ""  # empty while it waits for room
    loaded: bool = False
    since: float = 0.0  # when it found room, or began to catch up
    taken: int | None = None  # how many of the pool's updates; None: it lacks the state before them, too
    losses: int = 0  # replicas lost here since one last answered

    def __str__(self) -> str:
        return f"replica {self.number} ({self.where or 'starting'})"


@dataclass
class _Calls:
    """The calls under way: place, job and start of each; and the seconds of those that are done."""

    running: dict[ObjectRef, tuple[_Place, int, float]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)

    def late(self, config: PoolConfig, deadline: float) -> list[ObjectRef]:
        """Calls that take longer than ``deadline`` seconds, or ``patience`` times the median of the finished ones."""
        limit = deadline
        if self.seconds:
            limit = min(limit, max(config.grace, config.patience * statistics.median(self.seconds)))
        return [ref for ref, (_, _, began) in self.running.items() if time.monotonic() - began > limit]


class RayPool(Engine):
    """An engine made of replicas.

    Args:
        recipe: what each replica loads; its model must be found on every machine.
        config: how many, and how they are kept.

    Raises:
        UsageError: no machine has room for a replica, Ray does not know an option, or the model does not load.
    """

    def __init__(self, recipe: Recipe, config: PoolConfig):
        self.config, self.prompts, self.deadline = config, recipe.data.prompts, recipe.engine.deadline
        join_cluster()
        self._actors = Actors(Replica, recipe, config)
        self._recipe = ray.put(recipe.model_copy(update={"model": _absolute(recipe.model)}))
        self._start: ObjectRef | None = None  # the snapshot that the updates begin with; None: the recipe's model
        self._updates: list[ObjectRef] = []
        self._places = {number: self._launch(number) for number in range(config.replicas)}
        self.batch_bytes = next(iter(self._each("batch_bytes").values()))

    @property
    def ready(self) -> list[_Place]:
        """Places whose replicas have caught up."""
        return [place for place in self._places.values() if place.joining is None]

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingConfig,
        population: Population | None = None,
        members: range | None = None,
    ) -> list[list[Completion]]:
        if population is not None:
            parts = generate_by_members(prompts, sampling, population, members, portion(self.config, population.size))
        else:
            parts = generate_by_prompts(prompts, sampling, portion(self.config, len(prompts), self.prompts))
        return join_answers(self._deal("generate", parts), population)

    def read(
        self,
        byte_ST: Tensor,
        state: Tensor | None = None,
        population: Population | None = None,
        members: range | None = None,
    ) -> Foretold:
        if population is None:
            return self._deal("read", [(byte_ST, state)])[0]
        parts = read_by_members(byte_ST, state, population, members, portion(self.config, population.size))
        return join_foretold(self._deal("read", parts))

    def saturation(self, byte_ST: Tensor) -> Saturation:
        return self._deal("saturation", [(byte_ST,)])[0]

    def measure_whitening(self, prompts: Sequence[Prompt], sampling: SamplingConfig) -> dict[str, Tensor]:
        return self._deal("measure_whitening", [(prompts, sampling)])[0]

    def apply(self, update: Update) -> float:
        refuse_dead_ray()
        self._updates.append(ray.put(update))
        rms = self._each("update_rms")
        if self.config.verify_every and len(self._updates) % self.config.verify_every == 0:
            self.weights_hash()
        return next(iter(rms.values()))

    def state_dict(self) -> dict[str, Tensor]:
        return self._deal("state_dict", [()])[0]

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._start, self._updates = ray.put((dict(state), 0.0)), []
        for place in self._places.values():
            place.taken = None
        self._each("update_rms")

    def weights_hash(self) -> str:
        """The hash of the weights that all replicas have.

        Raises:
            ReplicaMismatch: one has others.
        """
        return common_hash({str(place): found for place, found in self._each("weights_hash").items()})

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self._deal("saved", [()])[0].items():
            (folder / name).write_bytes(content)

    def close(self) -> None:
        """Kill the actors and give back their places in the cluster."""
        for place in self._places.values():
            self._actors.end(place.actor)
        self._places.clear()

    def _deal(self, method: str, jobs: Sequence[Sequence[Any]]) -> list[Any]:
        """Call ``method`` with the arguments of each job, on replicas that are free; returns the results in order."""
        waiting, calls = deque(range(len(jobs))), _Calls()
        answers: dict[int, Any] = {}
        while len(answers) < len(jobs):
            busy = {place for place, _, _ in calls.running.values()}
            idle = (place for place in self.ready if place not in busy)
            for place in islice(idle, len(waiting)):
                self._send(calls, place, job := waiting.popleft(), method, jobs[job])
            for _, job, answer in self._answers(calls):
                if answer is LOST:
                    waiting.appendleft(job)
                else:
                    answers[job] = answer
        return [answers[job] for job in range(len(jobs))]

    def _each(self, method: str) -> dict[_Place, Any]:
        """Call ``method`` on every replica that is ready, at least one; returns the results by place."""
        answers: dict[_Place, Any] = {}
        calls = _Calls()
        while calls.running or not answers:
            if not calls.running:
                for place in self.ready:
                    self._send(calls, place, 0, method, ())
            answers |= {place: answer for place, _, answer in self._answers(calls) if answer is not LOST}
        return answers

    def _send(self, calls: _Calls, place: _Place, job: int, method: str, arguments: Sequence[Any]) -> None:
        calls.running[self._call(place, method, arguments)] = (place, job, time.monotonic())

    def _call(self, place: _Place, method: str, arguments: Sequence[Any] = ()) -> ObjectRef:
        """Send a call, with the updates (and if need be the state) that the replica lacks."""
        refuse_dead_ray()
        snapshot, lacking = None, self._updates[place.taken or 0 :]
        if place.taken is None:
            donor = next((other for other in self.ready if other.taken is not None), None)
            if self._updates and donor:
                snapshot, lacking = self._call(donor, "snapshot"), []
            else:
                snapshot = self._start
        place.taken = len(self._updates)
        return place.actor.answer.remote(method, arguments, self.batch_bytes, snapshot, *lacking)

    def _answers(self, calls: _Calls) -> Iterator[tuple[_Place, int, Any]]:
        """Wait up to ``TICK`` seconds, then yield (place, job, answer) of each call that is done or lost."""
        joining = {place.joining: place for place in self._places.values() if place.joining is not None}
        pending = [*calls.running, *joining]
        if not ray.wait(pending, timeout=TICK)[0]:
            refuse_dead_ray()
        else:
            for ref in ray.wait(pending, num_returns=len(pending), timeout=0)[0]:
                if ref in joining:
                    self._join(joining[ref], self._answer(joining[ref], ref))
                    continue
                place, job, began = calls.running.pop(ref)
                answer = self._answer(place, ref)
                if answer is not LOST:
                    place.losses = 0
                    calls.seconds.append(time.monotonic() - began)
                yield place, job, answer
        for ref in calls.late(self.config, self.deadline):
            place, job, began = calls.running.pop(ref)
            self._replace(place, f"no answer for {time.monotonic() - began:.0f} s")
            yield place, job, LOST
        for place in [*self._places.values()]:
            if place.joining is not None and place.where and time.monotonic() - place.since > self.deadline:
                self._replace(place, f"not ready after {self.deadline:g} s (engine.deadline)")

    def _answer(self, place: _Place, ref: ObjectRef) -> Any:
        """The result of a call; LOST if its replica died.

        An error of the engine is raised again, unless a replica that is joining made it and others are ready.
        """
        try:
            return ray.get(ref)
        except RayError as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            if not isinstance(cause, RayError) and (place.joining is None or not self.ready):
                raise cause from error
            self._replace(place, str(cause))
            return LOST

    def _join(self, place: _Place, answer: Any) -> None:
        """Note that a joining replica has found room, loaded its engine or caught up, and begin its next step."""
        if answer is LOST:
            return
        if not place.where:
            place.where, place.since = answer, time.monotonic()
            place.joining = place.actor.start.remote(self._recipe, self.config.threads)
        elif not place.loaded:
            place.loaded, place.since = True, time.monotonic()
            place.joining = self._call(place, "update_rms")
        else:
            place.joining = None
            logger.info("%s is ready", place)

    def _launch(self, number: int, losses: int = 0) -> _Place:
        actor = self._actors.launch()
        return _Place(number, actor, actor.where.remote(), losses=losses)

    def _replace(self, place: _Place, reason: str) -> None:
        """End a replica and start another in its place, unless ``LIVES`` were lost there in a row without an answer."""
        logger.warning("%s is lost: %s", place, " ".join(reason.split())[:300])
        self._actors.end(place.actor)
        if place.losses + 1 < LIVES:
            self._places[place.number] = self._launch(place.number, place.losses + 1)
            return
        del self._places[place.number]
        if not self._places:
            raise PoolError(f"no replica is left; {place} was the last of {LIVES} lost without an answer: {reason}")


def refuse_dead_ray() -> None:
    """Raise PoolError where Ray no longer runs on this machine."""
    if not is_alive():
        raise PoolError(
            "Ray has died on this machine, and the replicas with it, killed perhaps for want of memory; generations in "
            "the journal are safe: go on with --resume"
        )


def _absolute(model: str) -> str:
    """A model's name, a folder or file as an absolute path."""
    return str(Path(model).absolute()) if Path(model).exists() else model
