"""Engines by name. Each is imported only when a recipe asks for it."""

from collections.abc import Callable
from functools import partial, wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from eggroll_rl.config import Recipe
from eggroll_rl.engines.base import Engine
from eggroll_rl.system.environment import device_of
from eggroll_rl.system.errors import UsageError

if TYPE_CHECKING:
    from eggroll_rl.data.encoding import PromptCheck
    from eggroll_rl.engines.fleet.pool import RayPool
    from eggroll_rl.models.blueprint import Blueprint

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def led_by_first_process(loop: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Under ``accelerate launch``, the first process runs ``loop`` and the others its engine; all return the same."""

    @wraps(loop)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        from eggroll_rl.engines.fleet.spmd import run_in_first

        return run_in_first(partial(loop, *args, **kwargs))

    return run


def check_engine(recipe: Recipe) -> "Blueprint":
    """Find out whether the engine can run and evolve the recipe's model, without loading it; returns its blueprint.

    Raises:
        UsageError: see ``check_model``, or what the engine needs is not installed.
    """
    if recipe.engine.pool is not None:
        _ray_pool()
    elif recipe.engine.name != "vllm":  # which says by itself where it runs
        device_of(recipe.engine.device)
    blueprint = check_model(recipe)
    if recipe.engine.name == "vllm":
        from eggroll_rl.engines.vllm.engine import check

        check(recipe, blueprint)
    return blueprint


def prompt_check(recipe: Recipe, blueprint: "Blueprint") -> "PromptCheck":
    """What finds out whether the recipe's model can be asked a prompt, before it is loaded."""
    from eggroll_rl.data.encoding import PromptCheck

    return PromptCheck.of(recipe, blueprint.config, blueprint.tokenizer)


def check_model(recipe: Recipe) -> "Blueprint":
    """As ``check_engine``, of what follows from the model alone, wherever the run will be.

    Raises:
        UsageError: the model is unknown, has no tokenizer, does not suit the engine, or not all of it that evolves can
            be perturbed there.
    """
    from eggroll_rl.engines.vllm.adapters import evolved_of
    from eggroll_rl.models.blueprint import inspect

    blueprint = inspect(recipe)
    if recipe.engine.name == "rwkv" and blueprint.config.model_type != "rwkv7":
        raise UsageError(
            f"engine rwkv runs RWKV-7 models, and {recipe.model} is a {type(blueprint.model).__name__}: "
            "set engine.name=transformers"
        )
    blueprint.check_perturbable()
    if recipe.engine.name == "vllm":
        evolved_of(blueprint)
    return blueprint


def build_engine(recipe: Recipe, blueprint: "Blueprint | None" = None) -> Engine:
    """The recipe's engine: in this process, in all processes of an ``accelerate launch``, or in a pool of Ray actors.

    Args:
        recipe: what to run.
        blueprint: what ``check_engine`` returned; None: the model is looked at again.

    Raises:
        UsageError: the model does not load, or what the engine needs is not installed.
    """
    from eggroll_rl.engines.fleet.spmd import GroupEngine, process_group

    group = process_group()
    if group is not None and recipe.engine.name == "vllm":
        raise UsageError(
            "engine vllm starts processes of its own: start it without a launcher, and set "
            "engine.vllm.tensor_parallel_size or engine.pool"
        )
    if recipe.engine.pool is None:
        return GroupEngine(recipe, group) if group else build_local(recipe, blueprint)
    if group is not None:
        raise UsageError("engine.pool has processes of its own: start it without a launcher, or engine.pool=null")
    return _ray_pool()(recipe, recipe.engine.pool)


def _ray_pool() -> type["RayPool"]:
    try:
        from eggroll_rl.engines.fleet.pool import RayPool
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise UsageError("engine.pool needs Ray: pip install 'eggroll-rl[ray]', or engine.pool=null") from error
    return RayPool


def build_local(recipe: Recipe, blueprint: "Blueprint | None" = None) -> Engine:
    """Load the recipe's model into the engine that the recipe names, once and in this process."""
    if recipe.engine.name == "rwkv":
        from eggroll_rl.engines.local.fused_rwkv import RWKVEngine

        return RWKVEngine.from_recipe(recipe, blueprint)
    if recipe.engine.name == "vllm":
        from eggroll_rl.engines.vllm.engine import VLLMEngine

        return VLLMEngine(recipe, blueprint)
    from eggroll_rl.engines.local.transformers import TransformersEngine

    return TransformersEngine.from_recipe(recipe, blueprint)


def build_learner(recipe: Recipe) -> Engine:
    """An engine to replay the recipe's updates in, on any machine: its own, or where that is vLLM the one that needs
    nothing but torch."""
    if recipe.engine.name == "vllm":
        recipe = recipe.model_copy(update={"engine": recipe.engine.model_copy(update={"name": "transformers"})})
    return build_local(recipe)
