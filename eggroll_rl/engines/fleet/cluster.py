"""The Ray cluster of a pool, and the CPUs and GPUs that each of its actors takes."""

import logging
import os
import socket
from typing import Any

import ray
from ray._private.worker import global_worker
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from eggroll_rl.config import PoolConfig, Recipe
from eggroll_rl.system.errors import UsageError


def join_cluster() -> None:
    """Join the Ray cluster of RAY_ADDRESS or of ``ray start``, or else start one for this process alone.

    A cluster that another process started for itself is left alone: it ends with that process.

    Raises:
        UsageError: RAY_ADDRESS names a cluster that does not answer.
    """
    if ray.is_initialized():
        return
    try:
        ray.init(include_dashboard=False, logging_level=logging.WARNING)
    except ConnectionError as error:
        if address := os.environ.get("RAY_ADDRESS"):
            raise UsageError(
                f"no Ray cluster answers at RAY_ADDRESS={address}: start one with `ray start --head`, or unset it"
            ) from error
        ray.init(
            "local", include_dashboard=False, logging_level=logging.WARNING
        )  # the one noted by `ray start` is gone


def is_alive() -> bool:
    """Whether Ray's daemon runs on this machine. Where it does not, all actors of this process end, and Ray ends this
    process without a word as soon as it puts an object or calls an actor."""
    node: Any = global_worker.node
    with socket.socket(socket.AF_UNIX) as daemon:
        return daemon.connect_ex(node.raylet_socket_name) == 0


class Actors:
    """Starts and ends Ray actors of the class ``cls``.

    An actor takes one CPU by default, and a GPU where there are any. With ``tensor_parallel_size`` T it takes T of both
    in a placement group, so that the T processes that vLLM starts in it find their GPUs free on one machine.

    Raises:
        UsageError: Ray does not know an option, or no machine has what one actor takes.
    """

    def __init__(self, cls: type, recipe: Recipe, config: PoolConfig):
        devices = recipe.engine.vllm.tensor_parallel_size if recipe.engine.name == "vllm" else 1
        gpus = devices * (recipe.engine.device != "cpu" and "GPU" in ray.cluster_resources())
        options = {"num_cpus": devices, "num_gpus": gpus, **config.actor, "max_restarts": 0, "max_task_retries": 0}
        try:
            self._actors: Any = ray.remote(cls).options(**options)
        except (ValueError, TypeError) as error:
            raise UsageError(f"engine.pool.actor={config.actor}: {error}") from error
        wanted = {"CPU": options["num_cpus"], "GPU": options["num_gpus"], **options.get("resources", {})}
        self._wanted = {kind: amount for kind, amount in wanted.items() if amount}
        self._cls, self._options, self._grouped = cls, options, devices > 1
        self._groups: dict[Any, Any] = {}  # of the actors that have one
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(all(has.get(kind, 0) >= amount for kind, amount in self._wanted.items()) for has in machines):
            needs = ", ".join(f"{amount:g} {kind}" for kind, amount in self._wanted.items())
            raise UsageError(f"no machine of the Ray cluster has {needs} for a replica: set engine.pool.actor")

    def launch(self) -> Any:
        """A new actor, which starts when the cluster has room for it."""
        if not self._grouped:
            return self._actors.remote()
        group = placement_group([self._wanted], strategy="STRICT_PACK")
        place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
        actor: Any = ray.remote(self._cls).options(**self._options, scheduling_strategy=place).remote()
        self._groups[actor] = group
        return actor

    def end(self, actor: Any) -> None:
        """Kill an actor, and let others have its place."""
        ray.kill(actor)
        if actor in self._groups:
            remove_placement_group(self._groups.pop(actor))
