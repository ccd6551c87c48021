"""How many bytes a second a population of integer models learns from, and where the time of an update goes.

    python -m benchmarks.egg_throughput
    python -m benchmarks.egg_throughput --products avx2

Bare products are int8 multiplications of numbers that the caches hold, by the same instructions and threads: what the
processor can at most. Every figure is a median.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Annotated, Any

import torch
import typer

from eggroll_rl.models.egg.arithmetic import BYTES
from eggroll_rl.models.egg.kernel import Draw, EggKernel, Products, bare_products, supported
from eggroll_rl.models.egg.model import EggConfig, new_model

SIZES = ((256, 6, 64), (64, 2, 256))  # width, layers and members of the published and of the tiny model
TOKENS, GROUP, DRAW = 100, 2, Draw(seed=0, epoch=0, shift=4)
BARE = 2**31  # multiplications that are timed, about


def seconds(act: Callable[[], Any]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def bare_rate(products: Products) -> float:
    """Multiplications a second."""
    times = max(1, BARE // bare_products(1, BYTES, products))
    return bare_products(times, BYTES, products) / seconds(lambda: bare_products(times, BYTES, products))


def measure(width: int, layers: int, members: int, products: Products, rounds: int) -> str:
    """One line on a model of this size: its speed, and the milliseconds of the parts of an update."""
    model = new_model(EggConfig(width, layers), 0)
    kernel = EggKernel(dict(model.named_parameters()), width, layers, products)
    text = torch.randint(1, BYTES, (members // GROUP, TOKENS + 1)).to(torch.uint8)
    state, fitness_K = model.new_state(members), torch.ones(members // 2, dtype=torch.int8)
    votes = kernel.vote(fitness_K, DRAW)
    acts: dict[str, Callable[[], Any]] = {
        "read": lambda: kernel.read(text, state, range(members), GROUP, DRAW),
        "noise": lambda: kernel.noise(DRAW, range(members // 2)),  # of which reading has its own, in all threads
        "vote": lambda: kernel.vote(fitness_K, DRAW),
        "move": lambda: kernel.move(votes, 2**31 - 1),
    }
    taken: dict[str, list[float]] = {name: [] for name in acts}
    rates = []
    for _ in range(rounds):
        rates.append(bare_rate(products))
        for name, act in acts.items():
            taken[name].append(seconds(act))
    read, noise, vote, move = (median(taken[name]) for name in acts)
    read_bytes, products_of_one = members * TOKENS, BYTES * width + 12 * layers * width**2
    reached, bare = read_bytes * products_of_one / read, median(rates)
    return (
        f"D {width}, L {layers}, N {members}: {read_bytes / (read + vote + move):,.0f} bytes/s; "
        f"ms: read {1000 * read:.1f}, vote {1000 * vote:.1f}, move {1000 * move:.1f}, "
        f"noise in one thread {1000 * noise:.1f}; reading makes "
        f"{reached / 1e9:.0f} of {bare / 1e9:.0f} G bare products/s, {reached / bare:.0%}"
    )


def main(
    products: Annotated[str, typer.Option(help="native, avx2 or portable")] = "native",
    rounds: Annotated[int, typer.Option(help="of which the medians are taken", min=1)] = 7,
) -> None:
    """Print a line for each size."""
    kind = next((kind for kind in supported() if kind == products), None)
    if kind is None:
        raise typer.BadParameter(f"this processor has {', '.join(supported())}", param_hint="--products")
    print(f"{kind} products, {torch.get_num_threads()} threads")
    for size in SIZES:
        print(measure(*size, kind, rounds), flush=True)


if __name__ == "__main__":
    typer.run(main)
