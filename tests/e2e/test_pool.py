"""A Ray pool against one engine: the same answers, steps and weights, whoever dies, stalls or comes late."""

import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from benchmarks.tiny_task import outcome, write_task
from eggroll_rl.config import (
    EngineConfig,
    PoolConfig,
    PopulationConfig,
    Recipe,
    SamplingConfig,
    VLLMConfig,
    load_recipe,
)
from eggroll_rl.engines.build import build_engine, check_engine
from eggroll_rl.engines.fleet.cluster import Actors, join_cluster
from eggroll_rl.engines.fleet.pool import RayPool
from eggroll_rl.engines.fleet.replica import Replica
from eggroll_rl.engines.fleet.sharing import ReplicaMismatch
from eggroll_rl.engines.local.engine import LocalEngine
from eggroll_rl.es.population import Population
from eggroll_rl.es.update import Update
from eggroll_rl.system.errors import UsageError
from eggroll_rl.train import train

PROMPTS = ["12 + 34 =", "a", "is 12 in the </answer>?"]
POPULATION = PopulationConfig(size=22, sigma=0.05)
LARGE = PopulationConfig(size=30_000, sigma=0.05)  # its update takes a while
SHORT = SamplingConfig(max_new_tokens=12)
LONG = SamplingConfig(max_new_tokens=200)


@pytest.fixture(scope="module")
def recipe(model_folder: Callable[[str], Path]) -> Recipe:
    return Recipe.model_validate(
        {
            "model": str(model_folder("llama")),
            "engine": {"device": "cpu", "max_rows": 12},
            "rewards": [{"fn": "eggroll_rl.rewards.text:exact_match"}],
            "population": POPULATION,
            "optimizer": {"name": "adam", "lr": 0.01},
        }
    )


NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[Cluster]:
    """One node, with room for one replica."""
    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    ray.init(cluster.address, logging_level=logging.WARNING)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


class Both:
    """A pool of two and one engine that are asked the same."""

    def __init__(self, recipe: Recipe):
        pool = build_engine(recipe)
        assert isinstance(pool, RayPool)
        self.pool, self.one = pool, LocalEngine.from_recipe(recipe)
        self.generation = 0

    def wait_for_both(self) -> None:
        deadline = time.monotonic() + 120
        while len(self.pool.ready) < 2:
            assert time.monotonic() < deadline
            self.pool.weights_hash()
            time.sleep(0.2)

    def generate(self, sampling: SamplingConfig = SHORT) -> Population:
        population = Population(0, self.generation, POPULATION)
        self.generation += 1
        answers = self.pool.generate(PROMPTS, sampling, population)
        assert answers == self.one.generate(PROMPTS, sampling, population)
        assert len({completion.text for row in answers for completion in row}) > len(PROMPTS)
        return population

    def apply(self, population: Population) -> None:
        torch.manual_seed(population.generation)
        update = Update(population, tuple(torch.randn(population.size).tolist()), lr=0.01)
        before = self.one.weights_hash()
        assert self.pool.apply(update) == self.one.apply(update) > 0
        assert self.pool.weights_hash() == self.one.weights_hash() != before

    def pids(self) -> dict[int, int]:
        """Process by the number of its replica."""
        return {place.number: int(re.findall(r"process (\d+)", place.where)[0]) for place in self.pool.ready}


@pytest.fixture(scope="module")
def pair(recipe: Recipe) -> Both:
    """A pool of two, of which only one has room before ``second_node`` is there."""
    return Both(with_pool(recipe, grace=2, verify_every=2))


@pytest.fixture(scope="module")
def second_node(cluster: Cluster) -> None:
    cluster.add_node(**NODE)


@pytest.fixture
def both(pair: Both, second_node: None) -> Both:
    """The pool with both replicas ready."""
    pair.wait_for_both()
    return pair


def with_pool(recipe: Recipe, **pool: Any) -> Recipe:
    return recipe.model_copy(update={"engine": recipe.engine.model_copy(update={"pool": PoolConfig(**pool)})})


def kill_in_update(pool: RayPool, pid: int) -> None:
    """SIGKILL, a moment after the next update was sent."""
    sent = len(pool._updates)
    while len(pool._updates) == sent:
        time.sleep(0.01)
    time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)


class Lodger:
    """Says in which placement group it lives."""

    def home(self) -> list[dict[str, float]]:
        return ray.util.get_current_placement_group().bundle_specs


@pytest.mark.slow
def test_a_replica_of_many_devices_has_a_placement_group_for_its_life(recipe: Recipe) -> None:
    engine = EngineConfig(name="vllm", device="cpu", vllm=VLLMConfig(tensor_parallel_size=2))
    parallel = recipe.model_copy(update={"engine": engine})
    with pytest.raises(UsageError, match="no machine of the Ray cluster has 2 CPU for a replica"):
        Actors(Lodger, parallel, PoolConfig())
    actors = Actors(Lodger, parallel, PoolConfig(actor={"num_cpus": 1}))
    first, second = actors.launch(), actors.launch()
    assert ray.get(first.home.remote()) == [{"CPU": 1}]
    waiting = second.home.remote()
    assert not ray.wait([waiting], timeout=0.5)[0]
    actors.end(first)
    assert ray.get(waiting, timeout=60) == [{"CPU": 1}]
    actors.end(second)


class Tenant(Replica):
    """Runs the transformers engine where the recipe names another, and has found as much memory as its number is."""

    def start(self, recipe: Recipe, threads: int | None) -> None:
        engine = recipe.engine.model_copy(update={"name": "transformers"})
        super().start(recipe.model_copy(update={"engine": engine}), threads)
        self.engine.batch_bytes = 10**6 + os.getpid()


@pytest.mark.slow
def test_a_closed_pool_leaves_its_place_to_the_next(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its processes end and its placement group is free, so that another begins where there is room for one."""
    monkeypatch.setattr("eggroll_rl.engines.fleet.pool.Replica", Tenant)
    engine = {"name": "vllm", "device": "cpu", "vllm": {"tensor_parallel_size": 2}}
    pool = {"replicas": 1, "actor": {"num_cpus": 1}}
    alone = recipe.model_copy(update={"engine": EngineConfig.model_validate({**engine, "pool": pool})})
    seen = []
    for _ in range(2):
        with RayPool(alone, PoolConfig.model_validate(pool)) as closed:
            seen.append((*closed.generate(PROMPTS, SHORT)[0], closed.weights_hash()))
            pids = [int(re.findall(r"process (\d+)", place.where)[0]) for place in closed.ready]
        assert len(pids) == 1
        wait_until(lambda: not any(map(psutil.pid_exists, pids)))  # noqa: B023
        assert {group["state"] for group in ray.util.placement_group_table().values()} == {"REMOVED"}
    assert seen[0] == seen[1]


@pytest.mark.slow
def test_all_replicas_have_the_batches_of_the_first(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eggroll_rl.engines.fleet.pool.Replica", Tenant)
    with RayPool(recipe, PoolConfig(replicas=2, actor={"num_cpus": 0})) as pool:
        wait_until(lambda: len(pool.ready) == 2 or not pool.weights_hash())
        pool.weights_hash()
        found = ray.get([place.actor.batch_bytes.remote() for place in pool.ready])
        assert pool.batch_bytes - 10**6 in [int(re.findall(r"process (\d+)", p.where)[0]) for p in pool.ready]
        assert found == [pool.batch_bytes] * 2


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_node_that_joins_later_gets_a_replica(pair: Both, request: pytest.FixtureRequest) -> None:
    for _ in range(2):
        pair.apply(pair.generate())
        assert len(pair.pool.ready) == 1  # whichever of the two came first
    request.getfixturevalue("second_node")
    pair.wait_for_both()
    pair.apply(pair.generate())


def test_a_pool_does_what_one_engine_does(both: Both, tmp_path: Path) -> None:
    for sampling in (SHORT, SHORT.model_copy(update={"temperature": 1.0})):
        both.apply(both.generate(sampling))
        for prompts in (PROMPTS, [*PROMPTS, "th", "12", ". "]):
            assert both.pool.generate(prompts, sampling) == both.one.generate(prompts, sampling)
    population = Population(0, 7, POPULATION)
    part = both.pool.generate(PROMPTS, SHORT, population, range(4, 10))
    assert part == both.one.generate(PROMPTS, SHORT, population)[4:10]
    both.pool.save(tmp_path / "pool")
    both.one.save(tmp_path / "one")
    assert {path.name: path.read_bytes() for path in (tmp_path / "pool").iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()
    }


@pytest.mark.slow
def test_replicas_killed_while_they_generate(both: Both, caplog: pytest.LogCaptureFixture) -> None:
    """None is left to give its state: new ones take all updates again."""
    for pid in both.pids().values():
        threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()
    population = both.generate(LONG)
    assert "replica 0" in caplog.text
    assert "replica 1" in caplog.text
    both.apply(population)


def test_a_replica_killed_in_the_middle_of_an_update(both: Both, caplog: pytest.LogCaptureFixture) -> None:
    killer = threading.Thread(target=kill_in_update, args=(both.pool, both.pids()[0]))
    killer.start()
    both.generation += 1
    both.apply(Population(0, both.generation, LARGE))
    killer.join()
    assert "replica 0" in caplog.text
    both.wait_for_both()
    both.apply(both.generate())


def test_a_stalled_replica_loses_its_chunk(both: Both, caplog: pytest.LogCaptureFixture) -> None:
    stalled = both.pids()[1]
    os.kill(stalled, signal.SIGSTOP)
    population = both.generate()
    assert "replica 1" in caplog.text
    assert "no answer for" in caplog.text
    both.apply(population)
    both.wait_for_both()
    assert stalled not in both.pids().values()
    both.apply(both.generate())


@pytest.mark.slow
def test_replicas_that_all_stall_are_replaced(recipe: Recipe, both: Both, caplog: pytest.LogCaptureFixture) -> None:
    """None has answered, so that there is nothing to compare with but the deadline."""
    both.pool.deadline = 20.0
    try:
        for pid in both.pids().values():
            os.kill(pid, signal.SIGSTOP)
        population = both.generate()
    finally:
        both.pool.deadline = recipe.engine.deadline
    assert "replica 0" in caplog.text
    assert "replica 1" in caplog.text
    both.apply(population)


@pytest.mark.slow
def test_a_replica_that_never_loads_is_an_error(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    class Sleeper(Replica):
        def start(self, recipe: Recipe, threads: int | None) -> None:
            time.sleep(1000)

    monkeypatch.setattr("eggroll_rl.engines.fleet.pool.Replica", Sleeper)
    stuck = with_pool(recipe, replicas=1, actor={"num_cpus": 0})
    stuck = stuck.model_copy(update={"engine": stuck.engine.model_copy(update={"deadline": 1.0})})
    with pytest.raises(UsageError, match=r"no replica is left; .*not ready after 1 s \(engine.deadline\)"):
        build_engine(stuck)


def test_a_replica_with_other_weights_is_named(both: Both) -> None:
    state, places = both.pool.state_dict(), both.pool.ready
    update = Update(Population(0, both.generation, POPULATION), tuple(torch.arange(22.0).tolist()), lr=0.1)
    ray.get(places[1].actor.answer.remote("update_rms", (), None, None, update))  # one that the other does not take
    names = ", ".join(sorted(map(str, places)))
    with pytest.raises(ReplicaMismatch, match=f"of 2 replicas, those of {re.escape(names)};"):
        for _ in range(2):
            both.pool.apply(update)
    both.pool.load_state_dict(state)
    both.apply(both.generate())


def test_a_run_with_two_replicas_is_the_run_with_one(tmp_path: Path) -> None:
    task = write_task(tmp_path)
    runs = []
    for name, pool in (("one", "null"), ("two", "{replicas: 2, actor: {num_cpus: 0}}")):
        settings = ["generations=3", "snapshots.every=2", f"output_dir={tmp_path / name}", f"engine.pool={pool}"]
        train(load_recipe(task, settings))
        runs.append(outcome(tmp_path / name))
        for says_which in ("recipe.yaml", "journal.jsonl"):
            del runs[-1][says_which]
    assert runs[0] == runs[1]
    assert all(record["update_rms"] > 0 for record in runs[0]["metrics.jsonl"] if "update_rms" in record)


def test_mistakes_are_named(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(**pool: Any) -> None:
        build_engine(with_pool(recipe, **pool))

    with pytest.raises(UsageError, match="no machine of the Ray cluster has 64 CPU for a replica"):
        build(actor={"num_cpus": 64})
    with pytest.raises(UsageError, match="num_cpu"):
        build(actor={"num_cpu": 1})
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "eggroll_rl.engines.fleet.pool")
    for find_out in (build_engine, check_engine):
        with pytest.raises(UsageError, match=r"pip install 'eggroll-rl\[ray\]'"):
            find_out(with_pool(recipe))


@pytest.mark.slow
def test_a_machine_whose_ray_dies_ends_the_run_with_a_message(tmp_path: Path) -> None:
    """In a process of its own: what Ray starts here must not die with it."""
    script = tmp_path / "run.py"
    script.write_text(DEATH)
    task = write_task(tmp_path)
    done = subprocess.run(
        [sys.executable, str(script), str(task), str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert "error: Ray has died on this machine" in done.stderr


DEATH = """
import sys, time
import psutil, ray
from eggroll_rl import cli
from eggroll_rl.engines.fleet import pool

def kill_ray(*arguments):
    for process in psutil.Process().children(recursive=True):
        if process.name() == "raylet":
            process.kill()
            time.sleep(0.5)
    return loaded(*arguments)

ray.init(address="local", num_cpus=2, include_dashboard=False)
loaded, pool.RayPool.apply = pool.RayPool.apply, kill_ray
recipe, folder = sys.argv[1:]
sys.argv = ["eggroll-rl", "train", recipe, "engine.pool={replicas: 2, actor: {num_cpus: 0}}", f"output_dir={folder}"]
cli.main()
"""


JOIN = """
import ray
from eggroll_rl.engines.fleet.cluster import join_cluster
join_cluster()
print(ray.get_runtime_context().gcs_address)
"""
BESIDE = f"""
import os, ray, subprocess, sys
ray.init("local", num_cpus=1, include_dashboard=False)
print(ray.get_runtime_context().gcs_address, flush=True)
subprocess.run([sys.executable, "-c", {JOIN!r}], check=True)
"""


def addresses(script: str, **environment: str) -> list[str]:
    """What a process that runs ``script`` prints."""
    command = [sys.executable, "-c", script]
    return subprocess.check_output(command, env=os.environ | environment, text=True).split()


@pytest.mark.slow
def test_a_run_leaves_the_cluster_of_another_process_alone() -> None:
    with tempfile.TemporaryDirectory() as scratch:  # where no `ray start` has noted a cluster
        own, of_run = addresses(BESIDE, RAY_TMPDIR=scratch)
    assert own != of_run


def test_a_run_joins_the_cluster_that_was_started_for_all(cluster: Cluster) -> None:
    assert addresses(JOIN) == addresses(JOIN, RAY_ADDRESS=cluster.address) == [cluster.address]


def test_a_given_cluster_that_does_not_answer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("Failed to connect to Ray cluster at 10.1.2.3:6379")  # Ray's, after some minutes

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", unreachable)
    monkeypatch.setenv("RAY_ADDRESS", "10.1.2.3:6379")
    with pytest.raises(UsageError, match=re.escape("no Ray cluster answers at RAY_ADDRESS=10.1.2.3:6379")):
        join_cluster()
