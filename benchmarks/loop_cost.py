"""What the training loop itself costs for each member of a population, its engine aside.

    python -m benchmarks.loop_cost 1000 10000 100000

The engine is a toy that answers from constants; the reward in its process, fitness, journal and metrics are real.
"""

import multiprocessing
import resource
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from torch import Tensor

from eggroll_rl import train
from eggroll_rl.config import SamplingConfig, load_recipe
from eggroll_rl.engines.base import Engine
from eggroll_rl.es.population import Population
from eggroll_rl.es.rollout import Completion, Prompt
from eggroll_rl.es.update import Update
from eggroll_rl.system.command import run_command

GENERATIONS = 5
POPULATIONS = (1_000, 10_000, 100_000)
RECIPE = """
model: embedded:rwkv7-countdown
data: {name: countdown, prompts: 4}
rewards: [{fn: "eggroll_rl.rewards.text:think_format"}]
evaluation: {n: 4}
"""
TEXTS = ("1 + 2", "<think>1 + 2</think>", "<answer>3</answer>", "<think>1 + 2</think>\n<answer>3</answer>")
ANSWERS = [Completion(text, tuple(range(20)), True) for text in (*TEXTS, TEXTS[0])]


class Cost(NamedTuple):
    """Of one generation of N members: seconds, and bytes of memory at the most."""

    members: int
    seconds: float
    memory: float


class Toy(Engine):
    """An engine of no cost that learns nothing; ``seconds`` is what it took all the same."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingConfig,
        population: Population | None = None,
        members: range | None = None,
    ) -> list[list[Completion]]:
        began, answers = time.perf_counter(), cycle(ANSWERS)
        completions = [list(islice(answers, len(prompts))) for _ in range(population.size if population else 1)]
        self.seconds += time.perf_counter() - began
        return completions

    def apply(self, update: Update) -> float:
        update.population.pair_weights(update.weights)
        return 0.0

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...

    def weights_hash(self) -> str:
        return ""

    def save(self, folder: Path) -> None:
        folder.mkdir()


def loop_cost(members: int) -> Cost:
    """Measure it in a process of its own."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_measure, args=[members, theirs])
    process.start()
    theirs.close()
    cost: Cost = ours.recv()
    process.join()
    return cost


def _measure(members: int, result: Connection) -> None:
    toy, before = Toy(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(RECIPE)
        settings = [f"population.size={members}", f"generations={GENERATIONS}", f"output_dir={folder}/run"]
        seconds = train.train(load_recipe(path, settings), toy).journal().seconds - toy.seconds
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result.send(Cost(members, seconds / GENERATIONS, 1024 * (peak - before)))


def main(
    populations: Annotated[list[int] | None, typer.Argument(min=2, help="how many members")] = None,
) -> None:
    """What the training loop costs for each member of a population, its engine aside."""
    first, *larger = sorted(populations or POPULATIONS)
    base = loop_cost(first)
    typer.echo(f"{first:>9,} members x 4 prompts: {base.seconds:.3f} s a generation, {base.memory / 2**20:.0f} MiB")
    for members in larger:
        _, seconds, memory = loop_cost(members)
        more = f"{1e6 * (seconds - base.seconds) / (members - first):.1f} us"
        more += f" and {(memory - base.memory) / (members - first):,.0f} bytes a member more"
        typer.echo(f"{members:>9,} members x 4 prompts: {seconds:.3f} s a generation, {memory / 2**20:.0f} MiB: {more}")


if __name__ == "__main__":
    run_command(main)
