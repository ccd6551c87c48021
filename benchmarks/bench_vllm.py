"""What populations cost in vLLM: ``python -m benchmarks.bench_vllm --members 32 --members 256 --json FILE``.

A preset of ``eggroll-rl bench`` with random weights, by default the shape of SmolLM2-135M. Figures are medians over
interleaved repeats in one run, so that the machine's moods fall on all of them alike: the population, the unperturbed
model in the same engine, a vLLM of its own without adapters, the population in the engine ``local`` (on a CPU in fp32,
where that is fastest), the writing of a new population into the slots, and the way from an update to the next answer.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from transformers import AutoModelForCausalLM

from eggroll_rl.config import PopulationConfig, Recipe, SamplingConfig
from eggroll_rl.engines.local.engine import LocalEngine
from eggroll_rl.engines.vllm.engine import VLLMEngine
from eggroll_rl.engines.vllm.start import ROWS, on_cpu
from eggroll_rl.es.population import Population
from eggroll_rl.es.update import Update
from eggroll_rl.models.loading import load_tokenizer
from eggroll_rl.planning.bench_model import PRESETS
from eggroll_rl.planning.interleaved import interleaved
from eggroll_rl.system.command import run_command

LENGTH = 256  # of the longest sequence
ROW_MIB = 3  # of vLLM's cache for each row: a block of SmolLM2's keys and values, ten times the state of the RWKV-7
LEAST_CACHE_GIB = 0.5
SPEEDS = ("population", "base", "without adapters", "engine local")


class Bench:
    """One engine with a population and one plain vLLM, both with the model in ``folder``.

    Args:
        slots: members that answer at a time; None: all.
    """

    def __init__(self, folder: Path, members: int, slots: int | None, rows: int, tokens: int, dtype: str):
        self.members, self.tokens = members, tokens
        together = min(max(members * rows, ROWS[0]), ROWS[1])
        cache_gib = max(LEAST_CACHE_GIB, together * ROW_MIB / 1024)
        self.prompts: list[Any] = [f"{index} plus {index} is" for index in range(10, 10 + rows)]
        settings: dict[str, Any] = {
            "model": str(folder),
            "engine": {
                "name": "vllm",
                "dtype": dtype,
                "max_rows": together,
                "vllm": {"kv_cache_gib": cache_gib, "max_model_len": LENGTH, "slots": slots},
            },
            "data": {"prompts": rows},
            "rewards": [{"fn": "eggroll_rl.rewards.countdown:countdown"}],
            "population": {"size": members},
            "optimizer": {"name": "sgd", "lr": 1e-6},
        }
        recipe = Recipe.model_validate(settings)
        local = {"name": "local", "dtype": "float32" if on_cpu() else dtype, "max_rows": together}
        self.population: PopulationConfig = recipe.population
        self.sampling = SamplingConfig(max_new_tokens=tokens)
        self.engine, self.plain = VLLMEngine(recipe), plain_vllm(folder, dtype, together, cache_gib)
        self.local = LocalEngine.from_recipe(Recipe.model_validate(settings | {"engine": local}))
        self.generation = 0

    def base(self) -> int:
        return _count(self.engine.generate(self.prompts * self.members, self.sampling))

    def members_of_population(self) -> int:
        return _count(self.engine.generate(self.prompts, self.sampling, self._population()))

    def in_engine_local(self) -> int:
        return _count(self.local.generate(self.prompts, self.sampling, self._population()))

    def without_adapters(self) -> int:
        from vllm import SamplingParams

        asked = SamplingParams(temperature=0.0, max_tokens=self.tokens, ignore_eos=True, detokenize=False)
        outputs = self.plain.generate(self.prompts * self.members, asked, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    def prepare(self) -> int:
        """Write the next generation's members into the slots."""
        self.generation += 1
        slots = self.engine.slots
        for first in range(0, self.members, slots):
            self.engine._fill_slots(self._population(), range(first, min(first + slots, self.members)))
        return self.members

    def update(self) -> int:
        """Learn, and answer one token with what was learnt."""
        self.engine.apply(Update(self._population(), (1.0, -1.0) * (self.members // 2), 1e-6))
        return _count(self.engine.generate(self.prompts[:1], SamplingConfig(max_new_tokens=1)))

    def close(self) -> None:
        self.engine.close()
        self.local.close()
        self.plain.llm_engine.engine_core.shutdown()

    def _population(self) -> Population:
        return Population(0, self.generation, self.population)


def plain_vllm(folder: Path, dtype: str, rows: int, cache_gib: float) -> Any:
    from vllm import LLM

    return LLM(
        model=str(folder), dtype=dtype, max_num_seqs=rows, max_model_len=LENGTH, enforce_eager=on_cpu(),
        kv_cache_memory_bytes=int(cache_gib * 2**30), use_tqdm_on_load=False, generation_config="vllm",
    )  # fmt: skip


def measure(
    model: str, members: int, slots: int | None, rows: int, tokens: int, repeats: int, dtype: str
) -> dict[str, Any]:
    """Tokens per second, their ratios, and the seconds of what is not generation."""
    with tempfile.TemporaryDirectory() as folder:
        write_model(model, Path(folder))
        bench = Bench(Path(folder), members, slots, rows, tokens, dtype)
        steps: dict[str, Callable[[], int]] = {
            "prepare": bench.prepare,
            "population": bench.members_of_population,
            "base": bench.base,
            "without adapters": bench.without_adapters,
            "engine local": bench.in_engine_local,
            "update": bench.update,
        }
        timed = interleaved(steps, repeats, warm_ups=1)
        bench.close()
    return {
        "model": model,
        "members": members,
        "slots": slots or members,
        "rows_per_member": rows,
        "tokens": tokens,
        "dtype": dtype,
        "repeats": repeats,
        "tokens_per_second": {step: timed.speed(step) for step in SPEEDS},
        "population / base": timed.ratio("population", "base"),
        "population / that in engine local": timed.ratio("population", "engine local"),
        "population / without adapters": timed.ratio("population", "without adapters"),
        "ms_to_prepare_a_member": 1000 * timed.median("prepare") / members,
        "seconds_from_update_to_answer": timed.median("update"),
        "seconds": timed.seconds,
    }


def write_model(model: str, folder: Path) -> None:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(PRESETS[model]()).save_pretrained(folder)
    load_tokenizer("embedded:llama-countdown").save_pretrained(folder)


def _count(completions: list[list[Any]]) -> int:
    return sum(len(completion.token_ids) for row in completions for completion in row)


def main(
    members: Annotated[list[int] | None, typer.Option(min=2, help="sizes of populations; default: 32")] = None,
    model: Annotated[Literal["smollm2-135m", "rwkv7-256x4"], typer.Option(help="whose shape")] = "smollm2-135m",
    slots: Annotated[int | None, typer.Option(min=1, help="members that answer at a time; default: all")] = None,
    rows: Annotated[int, typer.Option(min=1, help="of each member")] = 2,
    tokens: Annotated[int, typer.Option(min=1, help="of each answer")] = 64,
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    json_file: Annotated[Path | None, typer.Option("--json", help="write all figures to this file")] = None,
) -> None:
    """What populations of these sizes cost in vLLM, with random weights."""
    measured = []
    for size in members or [32]:
        measured.append(measure(model, size, slots, rows, tokens, repeats, dtype))
        shown = {key: value for key, value in measured[-1].items() if key != "seconds"}
        typer.echo(json.dumps(shown, indent=2))
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(measured, indent=2) + "\n")


if __name__ == "__main__":
    run_command(main)
