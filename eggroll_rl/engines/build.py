"""Engines by name. Each is imported only when a recipe asks for it."""

import difflib
from collections.abc import Callable
from functools import partial, wraps
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from eggroll_rl.config import Recipe
from eggroll_rl.engines.base import Engine
from eggroll_rl.system.errors import UsageError

if TYPE_CHECKING:
    from eggroll_rl.data.encoding import PromptCheck
    from eggroll_rl.engines.fleet.pool import RayPool
    from eggroll_rl.models.blueprint import Blueprint

ENTRY_POINTS = "eggroll_rl.engines"  # the group of other packages' engines
OWN = {
    "local": "eggroll_rl.engines.local.engine:LocalEngine",
    "transformers": "eggroll_rl.engines.local.engine:LocalEngine",
    "rwkv": "eggroll_rl.engines.local.engine:LocalEngine",
    "vllm": "eggroll_rl.engines.vllm.engine:VLLMEngine",
    "egg": "eggroll_rl.engines.egg:EggEngine",
}

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def led_by_first_process(loop: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Decorate ``loop``: under ``accelerate launch`` the first process runs it, the others make its engine's calls, and
    all return its result."""

    @wraps(loop)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        from eggroll_rl.engines.fleet.spmd import run_in_first

        return run_in_first(partial(loop, *args, **kwargs))

    return run


def engine_kinds() -> dict[str, EntryPoint]:
    """The engines that there are, by name: this package's, and those that others bring.

    A package brings one by an entry point of the group ``eggroll_rl.engines``: a name, and a class that is an
    ``Engine`` with ``from_recipe``. No name of this package's can be taken.
    """
    own = {name: EntryPoint(name, value, ENTRY_POINTS) for name, value in OWN.items()}
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)} | own


def engine_kind(name: str) -> type[Engine]:
    """The class of the engine of that name.

    Raises:
        UsageError: there is none, or what it is in is not installed.
    """
    kinds = engine_kinds()
    if name not in kinds:
        near = difflib.get_close_matches(name, kinds, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(f"engine.name={name}: no such engine; {hint}there are {', '.join(sorted(kinds))}")
    try:
        return kinds[name].load()
    except (ImportError, AttributeError) as error:
        if name in OWN:
            raise
        raise UsageError(f"engine.name={name}: {kinds[name].value} does not load: {error}") from error


def is_local(name: str) -> bool:
    """Whether the name means ``LocalEngine``, which answers in this process with torch."""
    return OWN.get(name) == OWN["local"]


def check_engine(recipe: Recipe) -> "Blueprint":
    """Find out whether the engine can run and evolve the recipe's model, without loading it; returns its blueprint.

    Raises:
        UsageError: see ``check_model``, or what the engine needs is not installed.
    """
    if recipe.engine.pool is not None:
        _ray_pool()
    blueprint = check_model(recipe)
    engine_kind(recipe.engine.name).check(recipe, blueprint)
    return blueprint


def prompt_check(recipe: Recipe, blueprint: "Blueprint") -> "PromptCheck":
    """The check of whether the recipe's model can be asked a prompt; needs no weights."""
    from eggroll_rl.data.encoding import PromptCheck

    return PromptCheck.of(recipe, blueprint.config, blueprint.tokenizer)


def check_model(recipe: Recipe) -> "Blueprint":
    """As ``check_engine``, but only what holds on every machine: what is installed here does not matter.

    Raises:
        UsageError: the engine or the model is unknown, the model has no tokenizer, does not suit the engine, or not all
            of it that evolves can be perturbed there.
    """
    from eggroll_rl.models.blueprint import inspect

    name, kind = recipe.engine.name, engine_kind(recipe.engine.name)
    if recipe.text is not None and not kind.reads_text:
        raise UsageError(f"engine.name={name} answers prompts, and reads no text: set engine.name=egg, or drop text")
    if recipe.population.whitening is not None and not kind.whitens:
        raise UsageError(
            f"population.whitening={recipe.population.whitening:g}: engine {name} has plain noise alone: set "
            "population.whitening=null" + (" (and a smaller sigma), or engine.name=local" if name != "egg" else "")
        )
    if recipe.weights not in kind.holds:
        raise UsageError(
            f"weights={recipe.weights}: engine {name} learns no such weights: set weights={kind.holds[0]}"
            + (", or engine.name=local" if name != "egg" else "")
        )
    if recipe.optimizer.name not in kind.rules:
        raise UsageError(
            f"optimizer.name={recipe.optimizer.name}: the engine {name} learns by {' or '.join(kind.rules)}; set one"
        )
    blueprint = inspect(recipe)
    kind.check_model(recipe, blueprint)
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

    group, name = process_group(), recipe.engine.name
    if group is not None and engine_kind(name).has_processes:
        raise UsageError(
            f"engine {name} starts processes of its own: start it without a launcher, and set "
            f"engine.{name}.tensor_parallel_size or engine.pool"
        )
    if recipe.engine.pool is None:
        return GroupEngine(recipe, group) if group else build_in_process(recipe, blueprint)
    if group is not None:
        raise UsageError("engine.pool has processes of its own: start it without a launcher, or engine.pool=null")
    return _ray_pool()(recipe, recipe.engine.pool)


def build_in_process(recipe: Recipe, blueprint: "Blueprint | None" = None) -> Engine:
    """Load the recipe's model into the engine that the recipe names, once and in this process."""
    return engine_kind(recipe.engine.name).from_recipe(recipe, blueprint)


def build_replay_engine(recipe: Recipe) -> Engine:
    """An engine with the base model, to replay the recipe's updates in on any machine: see ``Engine.replayed_by``."""
    name = engine_kind(recipe.engine.name).replayed_by or recipe.engine.name
    return build_in_process(recipe.model_copy(update={"engine": recipe.engine.model_copy(update={"name": name})}))


def _ray_pool() -> type["RayPool"]:
    try:
        from eggroll_rl.engines.fleet.pool import RayPool
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise UsageError("engine.pool needs Ray: pip install 'eggroll-rl[ray]', or engine.pool=null") from error
    return RayPool
