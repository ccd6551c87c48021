"""A closed engine leaves nothing behind that a second one in the same process would miss."""

import psutil

from eggroll_rl.engines.vllm.engine import VLLMEngine
from eggroll_rl.es.population import Population

from .conftest import recipe_of
from .test_engine import GREEDY


def test_a_closed_engine_ends_its_processes_and_another_starts() -> None:
    recipe = recipe_of("embedded:llama-countdown")
    population = Population(recipe.seed, 0, recipe.population)
    before, seen = set(psutil.Process().children(recursive=True)), []
    for _ in range(2):
        with VLLMEngine(recipe) as engine:
            own = set(psutil.Process().children(recursive=True)) - before
            assert any("EngineCore" in command_of(process) for process in own)
            seen.append((engine.generate(["12 + 34 ="], GREEDY, population), engine.weights_hash()))
        _, alive = psutil.wait_procs([process for process in own if is_of_vllm(process)], timeout=60)
        assert not alive
    assert seen[0] == seen[1]


def command_of(process: psutil.Process) -> str:
    """Its command line; none where it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # or a zombie
        return ""


def is_of_vllm(process: psutil.Process) -> bool:
    """Whether it still runs and is none of Python's own helpers, which live as long as this process."""
    command = command_of(process)
    return bool(command) and "resource_tracker" not in command
