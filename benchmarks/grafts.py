"""Where a run's learning is: the base model with only some of the trained tensors, and without them.

python -m benchmarks.grafts runs/countdown_tiny
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from eggroll_rl.config import Recipe, load_recipe
from eggroll_rl.data.dataset import load_data
from eggroll_rl.engines.local.engine import LocalEngine
from eggroll_rl.models.loading import load_model
from eggroll_rl.runs.evaluation import accuracy_reward, evaluate
from eggroll_rl.runs.folder import RunFolder
from eggroll_rl.scoring import Scorer
from eggroll_rl.system.command import run_command


def group_of(name: str, tensor: Tensor) -> str:
    """The kind of a parameter, in words."""
    if "lm_head" in name:
        return "the head"
    if "embed" in name:
        return "the embeddings"
    is_matrix = sum(size > 1 for size in tensor.shape) == 2 and not name.endswith(".r_k")
    return "the layers' matrices" if is_matrix else "vectors"


def grafted(recipe: Recipe, trained: dict[str, Tensor], n: int) -> Iterator[tuple[str, float]]:
    """What was taken from the trained model, and the accuracy with it; all in fp32."""
    base, tokenizer = load_model(recipe.model)
    parameters = {name: parameter.detach() for name, parameter in base.named_parameters()}
    own = {name: tensor.clone() for name, tensor in parameters.items()}
    groups = list(dict.fromkeys(group_of(name, tensor) for name, tensor in own.items()))
    choices = {"nothing": set[str](), "all": set(groups)}
    choices |= {group: {group} for group in groups}
    choices |= {f"all but {group}": set(groups) - {group} for group in groups}
    held_out = load_data(recipe.data, recipe.seed).test(n)
    engine = LocalEngine.of_model(recipe, base, tokenizer, learns=False)
    with engine, Scorer([accuracy_reward(recipe)], recipe.scoring) as scorer:
        for choice, taken in choices.items():
            for name, tensor in parameters.items():
                tensor.copy_(trained[name] if group_of(name, tensor) in taken else own[name])
            engine.weights_changed()
            yield choice, evaluate(engine, held_out, scorer, recipe.held_out_sampling).accuracy


def main(
    folder: Annotated[Path, typer.Argument(help="of a run, by whatever method")],
    n: Annotated[int, typer.Option(min=1, help="held-out problems")] = 1024,
) -> None:
    """Print a Markdown table of the accuracy with parts of what a run has learned."""
    run = RunFolder(folder)
    recipe = load_recipe(run.recipe_file)
    trained = {name: parameter.detach() for name, parameter in load_model(str(run.model))[0].named_parameters()}
    typer.echo("| of the trained model | accuracy |\n|---|---:|")
    with torch.no_grad():
        for choice, accuracy in grafted(recipe, trained, n):
            typer.echo(f"| {choice} | {accuracy:.1%} |")


if __name__ == "__main__":
    run_command(main)
