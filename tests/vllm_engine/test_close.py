"""A closed engine leaves nothing behind that a second one in the same process would miss."""

from unittest.mock import Mock

import psutil
import pytest

from eggroll_rl.engines.vllm.engine import VLLMEngine
from eggroll_rl.es.population import Population
from eggroll_rl.system.errors import UsageError

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


@pytest.mark.parametrize("error", [UsageError, RuntimeError, KeyboardInterrupt])
def test_an_engine_that_cannot_begin_ends_its_processes(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    started = Mock()
    monkeypatch.setattr("eggroll_rl.engines.vllm.engine.start", started)
    monkeypatch.setattr(VLLMEngine, "_begin", Mock(side_effect=error))
    with pytest.raises(error):
        VLLMEngine(recipe_of("embedded:llama-countdown"))
    started.return_value.llm_engine.engine_core.shutdown.assert_called_once()


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
