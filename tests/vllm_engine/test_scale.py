"""Many members through few slots and few cache blocks: the same answers, and no memory that grows with a population."""

from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import pytest
import vllm

from eggroll_rl.config import PopulationConfig, SamplingConfig
from eggroll_rl.engines.local.engine import LocalEngine
from eggroll_rl.engines.vllm.adapters import slot_bytes
from eggroll_rl.engines.vllm.engine import VLLMEngine
from eggroll_rl.engines.vllm.worker import PopulationWorker
from eggroll_rl.es.population import Population
from eggroll_rl.system.errors import UsageError

from .conftest import SLOTS, Engines, back_to_base, recipe_of
from .test_engine import GREEDY, ask_both, population_of, prompts_of

BLOCKS, BLOCK, BLOCK_BYTES = 12, 128, 3 * 2 * 128 * 128 * 4  # layers x (keys, values) x tokens x width x fp32
PROMPTS, LENGTH = 3, 120  # tokens of each: an answer of more than eight needs a second block
POPULATION = PopulationConfig(size=1024, sigma=0.02)


class ProbedWorker(PopulationWorker):
    """A worker that says what it holds."""

    def probe_bytes(self) -> list[int | bool]:
        """Bytes of all slots, and whether noise is held besides."""
        layers = self.eggroll.layers
        stacked = [t for layer in layers for t in (*layer.slots.lora_a_stacked, *layer.slots.lora_b_stacked)]
        return [sum(t.nbytes for t in stacked), self.eggroll.slots.noise._memo is not None]

    def probe_lookups(self) -> int:
        """How often vLLM has looked at the list of all adapters since this was first asked."""
        manager = self.model_runner.lora_manager
        if not isinstance(manager.list_adapters, Mock):
            manager.list_adapters = Mock(wraps=manager.list_adapters)
        return int(manager.list_adapters.call_count)


@pytest.fixture(scope="module")
def small() -> Iterator[VLLMEngine]:
    """An engine with fewer cache blocks than rows, whose worker can be probed, and which counts."""

    def probed(**options: Any) -> vllm.LLM:
        own = {"worker_extension_cls": f"{__name__}.ProbedWorker", "disable_log_stats": False}
        return started(**(options | own))

    started = vllm.LLM
    options = {"slots": SLOTS, "kv_cache_gib": BLOCKS * BLOCK_BYTES / 2**30, "max_model_len": 2 * BLOCK}
    recipe = recipe_of(
        "embedded:llama-countdown",
        engine={"name": "vllm", "vllm": options},
        population=POPULATION.model_dump(),
        parameters={"frozen": ["*embed*", "*lm_head*", "*norm*"]},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vllm.LLM", probed)
        engine = VLLMEngine(recipe)
    yield engine
    engine.close()


def counted(engine: VLLMEngine, name: str) -> float:
    return sum(metric.value for metric in engine.llm.get_metrics() if metric.name == name)


def test_preempted_members_answer_as_in_transformers(small: VLLMEngine) -> None:
    """More rows than blocks, and each needs a second block while it answers."""
    text = "".join(f"{n} plus {n * 3} is {n * 4}. " for n in range(60))
    ids = small.tokenizer(text)["input_ids"]
    prompts: list[Any] = [small.tokenizer.decode(ids[first : first + LENGTH]) for first in range(PROMPTS)]
    assert {len(small.tokenizer(prompt)["input_ids"]) for prompt in prompts} == {LENGTH}
    assert small.llm.llm_engine.vllm_config.cache_config.num_gpu_blocks == BLOCKS < SLOTS * PROMPTS
    population, members = Population(3, 0, POPULATION), range(1024 - 2 * SLOTS, 1024)
    before = counted(small, "vllm:num_preemptions")
    given = small.generate(prompts, GREEDY, population, members)
    assert counted(small, "vllm:num_preemptions") > before
    assert given == LocalEngine.from_recipe(small.recipe).generate(prompts, GREEDY, population, members)


def test_a_wave_holds_its_slots_alone(small: VLLMEngine) -> None:
    """One more than asked for: vLLM's kernels for CPUs keep one empty."""
    expected = (SLOTS + 1) * slot_bytes(small.recipe, small.evolved)
    for size in (SLOTS, 8 * SLOTS):
        small.generate(["1 plus 1 is"], SamplingConfig(max_new_tokens=1), Population(3, size, POPULATION), range(size))
        assert small.llm.collective_rpc("probe_bytes") == [[expected, False]]


def test_no_step_looks_through_all_adapters(small: VLLMEngine) -> None:
    """vLLM's own manager does so once for each adapter: at each step, the square of the members."""
    assert small.llm.collective_rpc("probe_lookups") == [0]
    small.generate(["1 plus 1 is"], GREEDY, Population(4, 0, POPULATION), range(2 * SLOTS))
    assert small.llm.collective_rpc("probe_lookups") == [0]


def test_a_prompt_longer_than_the_model_is_refused(small: VLLMEngine) -> None:
    long = "1 plus 2 is 3. " * 60
    tokens = len(small.tokenizer(long)["input_ids"])
    assert tokens > 2 * BLOCK
    with pytest.raises(UsageError, match=rf"a prompt of {tokens} tokens .* more than the 256 .*max_model_len"):
        small.generate(["1 plus 1 is", long], GREEDY)
    assert small.generate(["1 plus 1 is"], GREEDY)[0][0].token_ids  # it goes on


def test_a_cache_that_holds_no_sequence_is_refused() -> None:
    options = {"slots": SLOTS, "kv_cache_gib": 0.001}
    with pytest.raises(UsageError, match=r"does not start .*engine\.vllm\.kv_cache_gib or lower .*max_model_len"):
        VLLMEngine(recipe_of("embedded:llama-countdown", engine={"name": "vllm", "vllm": options}))


def test_answers_are_the_same_after_sleep(of_llama: Engines) -> None:
    """vLLM itself wakes with all weights; its build for CPUs keeps them where they are."""
    back_to_base(of_llama)
    before = ask_both(of_llama, population_of(of_llama))
    of_llama.vllm.llm.sleep(level=1)
    of_llama.vllm.llm.wake_up()
    assert of_llama.vllm.generate(prompts_of(of_llama), GREEDY, population_of(of_llama)) == before
