"""The speed of integer models by each kind of instructions, and what a member costs in populations of any size.

python -m benchmarks.egg_throughput instructions
python -m benchmarks.egg_throughput members
"""

from collections.abc import Callable
from typing import Annotated

import torch
import typer

from eggroll_rl.config import FitnessConfig, PopulationConfig
from eggroll_rl.data.text import Streams
from eggroll_rl.engines.egg import EggEngine
from eggroll_rl.es.fitness import fitness
from eggroll_rl.es.population import Population
from eggroll_rl.es.update import Update
from eggroll_rl.models.egg.arithmetic import BYTES, SHIFT
from eggroll_rl.models.egg.kernel import supported
from eggroll_rl.models.egg.model import EggConfig, new_model
from eggroll_rl.models.egg.tokenizer import byte_tokenizer
from eggroll_rl.planning.bench_egg import GROUP, PRESETS, measure_egg
from eggroll_rl.planning.interleaved import interleaved, peak_memory

WIDTH, LAYERS, TOKENS = 64, 2, 20
SIZES = tuple(4**power for power in range(4, 10))  # 256 to 262,144

Repeats = Annotated[int, typer.Option(help="of which medians are taken", min=1)]
app = typer.Typer(add_completion=False)


@app.command()
def instructions(repeats: Repeats = 7, tokens: int = 100) -> None:
    """Bytes a second that a population learns from, and the share of bare int8 products that reading reaches."""
    for name in PRESETS:
        for products in supported():
            result = measure_egg(name, None, None, tokens, repeats, products)
            speed, (share,) = result["tokens_per_second"]["population"], result["ratios"].values()
            bare = result["tokens_per_second"]["bare int8 products"]
            print(f"{name}, {products}: {speed:,.0f} bytes/s, {share:.0%} of {bare:,.0f}", flush=True)


@app.command()
def members(repeats: Repeats = 3) -> None:
    """Time and memory of whole generations by populations of 256 to 262,144, text and states included."""
    generations: dict[str, Callable[[], int]] = {}
    held, start = {}, peak_memory()
    for size in SIZES:
        generations[str(size)] = generation_of(size)
        generations[str(size)]()
        held[size] = peak_memory() - start
    timed = interleaved(generations, repeats)
    for size in SIZES:
        nanoseconds = 1e9 / timed.speed(str(size))
        print(f"{size:,} members: {nanoseconds:,.0f} ns a byte, peak memory {held[size] / 2**20:,.1f} MiB more")


def generation_of(members: int) -> Callable[[], int]:
    """A population whose call is a generation; it returns the bytes read."""
    engine = EggEngine(new_model(EggConfig(WIDTH, LAYERS), 0), byte_tokenizer(), 0, SHIFT)
    population = Population(0, 0, PopulationConfig(size=members, sigma=2.0**-SHIFT))
    text = torch.randint(1, BYTES, (members // GROUP * TOKENS + 1,)).to(torch.uint8)
    streams, state = Streams(text, members // GROUP, TOKENS), engine.model.new_state(members)

    def generation() -> int:
        nonlocal state
        bits_N, state = engine.read(streams.batch(0), state, population)
        weights_N = fitness(bits_N[:, None], FitnessConfig(shaping="sign"), antithetic=True)
        engine.apply(Update(population, tuple(weights_N.tolist()), 1.0))
        return members * TOKENS

    return generation


if __name__ == "__main__":
    app()
