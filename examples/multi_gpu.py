"""One population over several GPUs or machines, in either of two ways.

    python examples/multi_gpu.py countdown_tiny --replicas 2  # a pool of Ray actors
    accelerate launch --multi_gpu --num_processes 2 examples/multi_gpu.py countdown_tiny  # a launcher

Members divide over the replicas; N numbers are all that travels, and the weights are those of a run in one process.
"""

from typing import Annotated

import typer

from eggroll_rl.config import load_recipe
from eggroll_rl.train import train


def main(
    recipe: Annotated[str, typer.Argument(help="a recipe file, or the name of a shipped recipe")],
    overrides: Annotated[list[str] | None, typer.Argument(help="as in population.size=64")] = None,
    replicas: Annotated[int, typer.Option(help="actors of a pool; 0: none, for a launcher")] = 0,
) -> None:
    """Train a recipe and print its folder."""
    pool = [f"engine.pool.replicas={replicas}"] if replicas else []
    run = train(load_recipe(recipe, [*(overrides or []), *pool]))
    print(run.path)


if __name__ == "__main__":
    typer.run(main)
