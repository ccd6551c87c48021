"""The Ray cluster that a pool's actors live in, and what each of them takes of it."""

import logging
from typing import Any

import ray

from eggroll_rl.config import PoolConfig, Recipe
from eggroll_rl.errors import UsageError


def connect() -> None:
    """Join the Ray cluster that is running, or else start one on this machine alone."""
    if ray.is_initialized():
        return
    try:
        ray.init(address="auto", logging_level=logging.WARNING)
    except ConnectionError:
        ray.init(include_dashboard=False, logging_level=logging.WARNING)


def actor_class(cls: type, recipe: Recipe, config: PoolConfig) -> Any:
    """``cls`` as Ray's actors, each with what the recipe gives it: one CPU by default, and a GPU where there are any.

    Raises:
        UsageError: Ray does not know an option, or no machine has what one actor takes.
    """
    gpus = int(recipe.engine.device != "cpu" and "GPU" in ray.cluster_resources())
    options = {"num_cpus": 1, "num_gpus": gpus, **config.actor, "max_restarts": 0, "max_task_retries": 0}
    try:
        actors: Any = ray.remote(cls).options(**options)
    except (ValueError, TypeError) as error:
        raise UsageError(f"engine.pool.actor={config.actor}: {error}") from error
    wanted = {"CPU": options["num_cpus"], "GPU": options["num_gpus"], **options.get("resources", {})}
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(has.get(kind, 0) >= amount for kind, amount in wanted.items()) for has in machines):
        needs = ", ".join(f"{amount:g} {kind}" for kind, amount in wanted.items() if amount)
        raise UsageError(f"no machine of the Ray cluster has {needs} for a replica: set engine.pool.actor")
    return actors
