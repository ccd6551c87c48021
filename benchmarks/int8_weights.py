"""Weights of int8 beside the same in float: memory, speed, and what they learn.

python -m benchmarks.int8_weights memory
python -m benchmarks.int8_weights speed --repeats 5
python -m benchmarks.int8_weights learning runs/int8 --seeds 0,1,2
python -m benchmarks.int8_weights arrival runs/int8/float-0
"""

import gc
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple, get_args

import torch
import typer
from torch import Tensor
from transformers import AutoModelForCausalLM

from eggroll_rl import train
from eggroll_rl.config import (
    OptimizerConfig,
    ParametersConfig,
    PopulationConfig,
    Recipe,
    Weights,
    build_recipe,
    load_recipe,
)
from eggroll_rl.engines.local.engine import LocalEngine
from eggroll_rl.engines.needs import size
from eggroll_rl.es.population import Population
from eggroll_rl.es.update import Update
from eggroll_rl.models.int8 import SCALE, float_state, int8_linears, to_int8
from eggroll_rl.models.loading import load_model, load_tokenizer
from eggroll_rl.planning.bench_model import PRESETS, SHAPES, Bench
from eggroll_rl.planning.interleaved import interleaved
from eggroll_rl.runs.folder import RunFolder
from eggroll_rl.runs.journal import Journal
from eggroll_rl.runs.whitening import restore_whitening
from eggroll_rl.system.command import run_app

TOKENIZER = "embedded:rwkv7-countdown"
ARMS = {  # of `learning`
    "float": (),
    "int8": ("weights=int8",),
    "int8 without error feedback": ("weights=int8", "optimizer.error_feedback=false"),
}
SETTINGS = (  # of `learning`; the head evolves too, in float in all arms
    "minutes=null",
    "generations=80",
    "evaluation={n: 1024, max_new_tokens: 256}",
    'parameters.frozen=["*embed*", "*norm*", "*.r_k"]',
    "population.whitening=null",
    "population.sigma=0.02",
    "optimizer={name: adam, lr: 2.0e-3}",
)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Kept(NamedTuple):
    """Bytes of a model and its learner after a step, by part, and of all tensors that live in the process."""

    parts: Counter[str]
    alive: int


@app.command()
def memory(shape: Annotated[str, typer.Option(help="a preset of `eggroll-rl bench`")] = "smollm2-135m") -> None:
    """Bytes of weights and learner after one step of Adam, in fp32 and in int8 with all else in fp32."""
    kept = {weights: measured(shape, weights) for weights in get_args(Weights)}
    typer.echo(f"{shape:<28}" + "".join(f"{weights:>12}" for weights in kept))
    for part in dict.fromkeys(part for one in kept.values() for part in one.parts):
        typer.echo(f"{part:<28}" + "".join(f"{size(one.parts[part]):>12}" for one in kept.values()))
    for what, total in (
        ("weights and learner", {weights: sum(one.parts.values()) for weights, one in kept.items()}),
        ("all tensors in the process", {weights: one.alive for weights, one in kept.items()}),
    ):
        typer.echo(f"{what:<28}" + "".join(f"{size(count):>12}" for count in total.values()), nl=False)
        typer.echo(f"   int8 / float {total['int8'] / total['float']:.3f}")


def measured(shape: str, weights: Weights) -> Kept:
    """What a model of this shape and its learner keep."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(PRESETS[shape]()).eval()
    population = PopulationConfig(size=8, sigma=1e-3)
    engine = LocalEngine(
        to_int8(model) if weights == "int8" else model,
        load_tokenizer(TOKENIZER),
        population=population,
        parameters=ParametersConfig(),
        optimizer=OptimizerConfig(),
    )
    engine.apply(Update(Population(0, 0, population), (1.0, -1.0) * 4, 1e-4))
    engine.noise.forget()
    parts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        kind = "scales" if name.endswith(SCALE) else "int8" if parameter.dtype == torch.int8 else "float"
        parts[f"weights: {kind}"] += parameter.nbytes
    own = {tensor.data_ptr() for tensor in model.parameters()}
    for key, tensor in engine.state_dict().items():
        if tensor.data_ptr() not in own:
            parts[f"learner: {key.partition('.')[0]}"] += tensor.nbytes
    alive = sum(storages().values())
    engine.close()
    return Kept(parts, alive)


def storages() -> dict[int, int]:
    """Bytes of all storage that tensors of this process hold, by address."""
    gc.collect()
    tensors = [found for found in gc.get_objects() if isinstance(found, torch.Tensor) and found.device.type == "cpu"]
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}


@app.command()
def speed(
    shapes: Annotated[list[str] | None, typer.Argument(help="presets of `eggroll-rl bench`")] = None,
    tokens: Annotated[int, typer.Option(min=16, help="length of an answer")] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="of each, interleaved; medians are shown")] = 5,
) -> None:
    """Tokens in a second of a population, in fp32 and in int8."""
    for shape in shapes or PRESETS:
        members, rows = SHAPES[shape]
        benches = {weights: Bench(shape, members, rows, tokens, weights) for weights in get_args(Weights)}
        steps = {weights: bench.members_of_population for weights, bench in benches.items()}
        timed = interleaved(steps, repeats, warm_ups=1)
        shown = ", ".join(f"{weights} {timed.speed(weights):,.0f} tokens/s" for weights in steps)
        typer.echo(f"{shape}, {members} x {rows} rows: {shown}; int8 / float {timed.ratio('int8', 'float'):.2f}")


@app.command()
def learning(
    folder: Annotated[Path, typer.Argument(help="for the runs; those that are there are kept")],
    seeds: Annotated[str, typer.Option(help="a run of each arm for each")] = "0,1,2",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="of countdown_tiny, as in generations=40")
    ] = None,
) -> None:
    """Held-out accuracy of `countdown_tiny` before and after all matrices evolve, in float, in int8, and without error
    feedback, and how far the layers have moved."""
    for seed in seeds.split(","):
        for arm, settings in ARMS.items():
            run = RunFolder(folder / f"{arm.replace(' ', '-')}-{seed}")
            if not run.path.exists():
                chosen = [*SETTINGS, *settings, f"seed={seed}", *(overrides or []), f"output_dir={run.path}"]
                train.train(load_recipe("countdown_tiny", chosen))
            typer.echo(f"{arm}, seed {seed}: {', then '.join(accuracies(run))}; layers moved by {moved(run):.2%}")


def moved(run: RunFolder) -> float:
    """How far a run has moved the layers that are int8 in the arms of int8, over how large they are."""
    with run.journal() as journal:
        recipe = journal.recipe
    states = []
    for model in (recipe.model, str(run.model)):
        engine = LocalEngine.from_recipe(recipe.model_copy(update={"model": model}))
        states.append({name: weight.float() for name, weight in float_state(engine.model).items()})
        engine.close()
    before, after = states
    names = int8_names(recipe)
    squares = sum(float((after[name] - before[name]).square().sum()) for name in names)
    return math.sqrt(squares / sum(float(before[name].square().sum()) for name in names))


@app.command()
def arrival(
    runs: Annotated[list[Path], typer.Argument(help="float runs of `learning`")],
    rates: Annotated[str, typer.Option(help="optimizer.lr of the same updates")] = "4e-3,1e-3,2.5e-4",
) -> None:
    """How far the updates of float runs take int8 layers the way that they take float ones, at several rates: 1 is as
    far, 0 nowhere."""
    typer.echo(f"{'run':<12}{'lr':>10}{'int8':>10}{'without error feedback':>26}")
    for folder in runs:
        with RunFolder(folder).journal() as journal:
            updates = [entry.update for entry in journal.entries(0, len(journal))]
        for rate in map(float, rates.split(",")):
            goal, *reached = (way(journal, arm, updates, rate) for arm in ARMS)
            length = sum(float(one.square().sum()) for one in goal.values())
            shares = [sum(float((one * goal[name]).sum()) for name, one in own.items()) / length for own in reached]
            typer.echo(f"{folder.name:<12}{rate:>10g}{shares[0]:>10.3f}{shares[1]:>26.3f}")


def way(journal: Journal, arm: str, updates: list[Update], rate: float) -> dict[str, Tensor]:
    """What these updates change, at this rate, of the evolved matrices that are int8 in the arms of int8, by name."""
    engine = LocalEngine.from_recipe(build_recipe(journal.recipe.model_dump(), list(ARMS[arm])))
    restore_whitening(engine, journal)
    layers = int8_names(journal.recipe)
    names = [parameter.name for parameter in engine.evolved if parameter.name in layers]
    before = {name: float_state(engine.model)[name].clone() for name in names}
    for update in updates:
        engine.apply(Update(update.population, update.weights, rate))
    after = float_state(engine.model)
    engine.close()
    return {name: after[name] - before[name] for name in names}


def int8_names(recipe: Recipe) -> list[str]:
    """The matrices that are int8 in the arms of int8."""
    return [f"{path}.weight" for path in int8_linears(load_model(recipe.model)[0])]


def accuracies(run: RunFolder) -> Iterator[str]:
    """The first and the last accuracy of a run, with its interval."""
    with run.journal() as journal:
        measured = journal.evaluations
        for generation in (min(measured), max(measured)):
            record = measured[generation]
            yield f"{record['accuracy']:.1%} [{record['low']:.1%}, {record['high']:.1%}] at generation {generation}"


if __name__ == "__main__":
    run_app(app)
