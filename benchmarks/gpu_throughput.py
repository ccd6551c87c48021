"""What a population costs on a device, shape by shape: ``python -m benchmarks.gpu_throughput SHAPE FILE``.

Every figure is a median over interleaved repeats in one process: the population with its noise read and with its noise
regenerated, the unperturbed model with and without CUDA graphs, its bare matrix products, transformers' ``generate``.
A CPU has neither kernels that regenerate noise nor graphs, and leaves these out.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from transformers import PreTrainedModel

from eggroll_rl.engines.local.engine import LocalEngine
from eggroll_rl.engines.local.static import StaticDecoder
from eggroll_rl.es import kernels
from eggroll_rl.es.layers import PopulationLayers
from eggroll_rl.es.parameters import EvolvedParameter
from eggroll_rl.planning.bench_model import Bench
from eggroll_rl.planning.interleaved import interleaved
from eggroll_rl.system.command import run_command
from eggroll_rl.system.durable import write_json

MEMBERS = {"rwkv7-2048x24": 1024, "qwen2.5-0.5b": 1024, "rwkv7-256x4": 64}  # of one row each


def uncaptured(model: PreTrainedModel, layers: PopulationLayers, evolved: Sequence[EvolvedParameter]) -> StaticDecoder:
    """The decoder of CUDA graphs, running its steps as they are."""
    decoder = StaticDecoder(model, layers)
    decoder.capture = False
    return decoder


def measure(shape: str, device: str, dtype: str, tokens: int, repeats: int) -> dict[str, Any]:
    """Tokens per second and their ratios, of rows that all make so many tokens."""
    members = MEMBERS[shape]
    subject = Bench(shape, members, 1, tokens, device=device, dtype=getattr(torch, dtype))
    engine = subject.engine
    on_gpu = kernels.run_on(engine.model.device)
    other = subject.new_engine()  # the graphs of an engine read noise in one place
    engine.regenerates, other.regenerates = False, True
    with other, LocalEngine(engine.model, engine.tokenizer, max_rows=members, choice=uncaptured) as plain:
        steps = {
            "base": subject.base,
            "base, no graphs": lambda: subject.base_by(plain),
            "population, noise read": subject.members_of_population,
            "population, noise regenerated": lambda: subject.members_by(other),
            "matrix products": subject.matrix_products,
            "generate": subject.plain_generate,
        }
        if not on_gpu:
            del steps["base, no graphs"], steps["population, noise regenerated"]
        with torch.inference_mode():
            timed = interleaved(steps, repeats, warm_ups=1)
    fastest = max((name for name in steps if name.startswith("population")), key=timed.speed)
    ratios = {"population / base": timed.ratio(fastest, "base")}
    ratios |= {f"base / {name}": timed.ratio("base", name) for name in steps if name in ("matrix products", "generate")}
    if on_gpu:
        ratios["base / base, no graphs"] = timed.ratio("base", "base, no graphs")
    return {
        "shape": shape,
        "members": members,
        "tokens": tokens,
        "dtype": dtype,
        "tokens_per_second": {name: timed.speed(name) for name in steps},
        "ratios": ratios,
        "kernels": _kernels(engine.model.device) if on_gpu else None,
    }


def _kernels(device: torch.device) -> dict[str, Any]:
    """What the choice between noise read and regenerated rests on: elements made and bytes moved in a second."""
    from eggroll_rl.es.kernels.timing import lowrank_seconds, rates

    return {"rates": rates(device)._asdict(), "lowrank_seconds": lowrank_seconds(device)}


def main(
    shape: str,
    file: Annotated[Path, typer.Argument(help="of the figures, JSON")],
    device: Annotated[str, typer.Option()] = "cuda",
    dtype: Annotated[Literal["bfloat16", "float32"], typer.Option()] = "bfloat16",
    tokens: Annotated[int, typer.Option(min=16, help="length of an answer")] = 64,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    """Measure one shape, with random weights."""
    write_json(file, measure(shape, device, dtype, tokens, repeats))


if __name__ == "__main__":
    run_command(main)
