"""The command line: ``eggroll-rl train | grpo | compare | tune | evaluate | ask | bench | export | verify |
report | recipes | plan``.

A user's mistake is one line and exit code 2.
"""

import json
import logging
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from eggroll_rl.config import Exported, Recipe, load_recipe
from eggroll_rl.system.command import run_app
from eggroll_rl.system.errors import UsageError
from eggroll_rl.system.paths import expanded, refuse_unwritable
from eggroll_rl.system.shipped import shipped_recipes

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)


def as_in_a_shell(value: Any) -> Any:
    """A path or name, or several, with ``~`` and variables as a shell has them: no shell looks into ``--json=~/x``."""
    if isinstance(value, list | tuple):
        return [as_in_a_shell(one) for one in value]
    return None if value is None else type(value)(expanded(str(value)))


def writable(value: Path | None) -> Path | None:
    """A file to be written, found to be possible before the work."""
    path: Path | None = as_in_a_shell(value)
    if path is not None:
        refuse_unwritable(path)
    return path


def found(recipe: Recipe) -> Recipe:
    """The recipe, once its model and data are found: a name that leads nowhere is told before the heavy imports."""
    from eggroll_rl.data.sources import locate_data
    from eggroll_rl.models.naming import locate_model

    locate_model(recipe.model)
    locate_data(recipe.data)
    return recipe


RecipeArgument = Annotated[str, typer.Argument(help="a recipe file, or the name of a shipped recipe")]
RunArgument = Annotated[Path, typer.Argument(help="a run folder", callback=as_in_a_shell)]
Overrides = Annotated[list[str] | None, typer.Argument(help="overrides, as in population.size=64")]


@app.command()
def train(
    recipe: Annotated[str | None, typer.Argument(help="a recipe file, or the name of a shipped recipe")] = None,
    overrides: Overrides = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="go on with a run; overrides: generations=... minutes=...", callback=as_in_a_shell
        ),
    ] = None,
) -> None:
    """Train a recipe; everything about the run goes into its output_dir. Or go on with a run that was cut short."""
    if resume is None:
        if recipe is None:
            raise UsageError("name a recipe, or a run by --resume RUN; `eggroll-rl recipes` lists the shipped recipes")
        resolved = found(load_recipe(recipe, overrides or []))
    elif recipe is not None and "=" not in recipe:
        raise UsageError(f"a run has its recipe: leave out {recipe!r} beside --resume")
    from eggroll_rl import train as training

    if resume is None:
        training.train(resolved)
    else:
        training.resume(resume, [text for text in (recipe, *(overrides or [])) if text])


@app.command()
def grpo(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Train a recipe by GRPO instead, with TRL; what only GRPO has is in the recipe's section ``grpo``."""
    resolved = found(load_recipe(recipe, overrides or []))
    from eggroll_rl.grpo import train as train_by_grpo

    train_by_grpo(resolved)


@app.command()
def compare(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    minutes: Annotated[float | None, typer.Option(help="training time of each run; default: the recipe's")] = None,
    seeds: Annotated[str, typer.Option(help="of the runs, each method takes all")] = "0,1,2",
    methods: Annotated[str, typer.Option(help="any of eggroll, grpo, openes, random, randopt")] = "eggroll,grpo",
    memory: Annotated[
        float | None, typer.Option(metavar="GIB", help="also equal memory: the largest batch that fits for each")
    ] = None,
    tune: Annotated[int, typer.Option(metavar="TRIALS", help="first try so many settings of each method")] = 0,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="default: runs/compare-RECIPE", callback=as_in_a_shell)
    ] = None,
) -> None:
    """Train by several methods for the same time, and say which is ahead; an interrupted comparison goes on."""
    resolved = found(load_recipe(recipe, overrides or []))
    name = Path(recipe).stem
    from eggroll_rl.comparison.compare import run_comparison
    from eggroll_rl.comparison.plan import Plan

    plan = Plan.from_options(name, resolved, minutes, seeds, methods, memory, tune)
    result = run_comparison(plan, output or Path("runs") / f"compare-{name}", typer.echo)
    typer.echo(result["conclusion"])


@app.command()
def tune(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    minutes: Annotated[float, typer.Option(min=0.01, help="in all")] = 10.0,
) -> None:
    """Find sigma and the learning rate of a recipe by short runs, and print them as overrides."""
    resolved = load_recipe(recipe, overrides or [])
    from eggroll_rl.planning.tune import tune as found

    typer.echo(" ".join(found(resolved, minutes, typer.echo)))


@app.command()
def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            help="a Hugging Face folder or name, an embedded model, or a run folder", callback=as_in_a_shell
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="of what is asked and of the engine, as in engine.dtype=bfloat16")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="countdown, gsm8k, math or reasoning-gym:NAME; default: a run's own, else countdown"),
    ] = None,
    data: Annotated[str | None, typer.Option(help="a file or dataset to ask instead", callback=as_in_a_shell)] = None,
    subset: Annotated[str | None, typer.Option(help="of that dataset")] = None,
    split: Annotated[str, typer.Option(help="test, train, or any other that the dataset has")] = "test",
    prompt: Annotated[str | None, typer.Option(help="a template such as '{question}'; default: the task's")] = None,
    prompt_column: Annotated[str | None, typer.Option(help="the column that is the prompt, instead")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="ask by the model's chat template")] = False,
    reward: Annotated[
        str | None,
        typer.Option(help="package.module:function or file.py:function; right is 1 or more", callback=as_in_a_shell),
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="of a run: the model that it began with")] = False,
    n: Annotated[int, typer.Option("--n", help="number of problems")] = 512,
    k: Annotated[int, typer.Option("--k", help="also sample k answers of each problem, for pass@k")] = 1,
    temperature: Annotated[float, typer.Option(help="of the sampled answers")] = 1.0,
    max_new_tokens: Annotated[int | None, typer.Option(help="length of an answer; default: the model's own")] = None,
    seed: Annotated[int, typer.Option(help="of the sampled answers")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write the result to this file", callback=writable)
    ] = None,
) -> None:
    """Greedy accuracy with its Wilson 95 % interval, and pass@k."""
    from eggroll_rl.eval.evaluate import Questions, evaluate_model

    questions = Questions(data, subset, prompt, prompt_column, reward, chat)
    result = evaluate_model(
        model, task, split, n, k, temperature, max_new_tokens, seed, questions, base, overrides or ()
    )
    line = f"accuracy {result['accuracy']:.1%} [{result['low']:.1%}, {result['high']:.1%}] of {result['n']}"
    typer.echo(
        "  ".join([line, *(f"{name} {value:.1%}" for name, value in result.items() if name.startswith("pass@"))])
    )
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2) + "\n")


@app.command()
def ask(
    model: Annotated[
        str, typer.Argument(metavar="RUN|MODEL", help="a run folder, or any model", callback=as_in_a_shell)
    ],
    prompt: Annotated[str | None, typer.Argument(help="a question; default, or -: read them line by line")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="of the recipe, as in sampling.temperature=0.7")] = None,
    generation: Annotated[int | None, typer.Option(help="of a run: updates taken; default: all")] = None,
    base: Annotated[bool, typer.Option("--base", help="of a run: ask the model that it began with, too")] = False,
) -> None:
    """Show a model's answer as it grows; without a prompt, a chat."""
    from eggroll_rl.ask import ask as ask_model

    ask_model(model, prompt, overrides or [], generation, base)


@app.command()
def bench(
    model: Annotated[
        list[str] | None,
        typer.Option(help="a preset (rwkv7-256x4, smollm2-135m, egg, egg-64x2) or a model; may be repeated"),
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="rows of each member; default: the preset's")] = None,
    members: Annotated[int | None, typer.Option(min=2, help="population size; default: the preset's")] = None,
    tokens: Annotated[int, typer.Option(min=16, help="length of an answer")] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="of each measurement, interleaved; medians are shown")] = 5,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write all figures to this file", callback=writable)
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="draw the throughputs into this PNG file", callback=writable)
    ] = None,
) -> None:
    """Throughput of a population against plain inference, bare matrix products and other ways, in one run."""
    from eggroll_rl.planning.bench import ALL, draw_bench, measure

    results = [measure(name, members, rows, tokens, repeats) for name in model or ALL]
    for result in results:
        table = Table(
            title=f"{result['model']}: {result['members']} members x {result['rows_per_member']} rows", box=None
        )
        table.add_column("figure")
        table.add_column("median", justify="right")
        for name, speed in result["tokens_per_second"].items():
            table.add_row(f"{name}, tokens/s", f"{speed:,.0f}")
        for name, ratio in result["ratios"].items():
            table.add_row(name, f"{ratio:.2f}")
        for name, share in result["shares"].items():
            table.add_row(name, f"{share:.1%}")
        for name, size in result["peak_memory"].items():
            table.add_row(f"{name}, peak memory", f"{size / 2**20:,.0f} MiB")
        Console(markup=False, emoji=False).print(table)
    if json_file is not None:
        json_file.write_text(json.dumps(results, indent=2) + "\n")
    if picture is not None:
        draw_bench(results, picture)


@app.command()
def export(
    run: RunArgument,
    out: Annotated[
        Path | None,
        typer.Argument(help="a new Hugging Face folder, or a new .pth file (RWKV-7)", callback=as_in_a_shell),
    ] = None,
    generation: Annotated[int | None, typer.Option(help="updates taken; 0 is the base model; default: all")] = None,
    weights: Annotated[
        Exported | None,
        typer.Option(help="of an int8 run: float, int8, or w8a8 for servers of int8 activations; default: int8"),
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="put it on the hub, with all by which it can be verified")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="for your eyes, where it is new on the hub")] = False,
) -> None:
    """Rebuild the model of any generation from the base model and the run's journal."""
    if out is None and push is None:
        raise UsageError("name a folder to write, or a place on the hub by --push OWNER/NAME")
    from eggroll_rl.hub import push_to_hub
    from eggroll_rl.runs.rebuild import export as export_model

    if out is not None:
        reached = export_model(run, out, generation, weights)
        typer.echo(f"generation {reached} of {run} is in {out}")
    elif weights is not None:
        raise UsageError("--weights is of a folder: name one; the hub gets the weights that can be verified")
    if push is not None:
        typer.echo(push_to_hub(run, push, generation, private))


@app.command()
def verify(
    run: Annotated[str, typer.Argument(help="a run folder, or the name of a run on the hub", callback=as_in_a_shell)],
) -> None:
    """Replay a run and compare what it saved with the replay; exit code 1 where something differs."""
    from eggroll_rl.hub import download_run
    from eggroll_rl.models.naming import is_hub_name
    from eggroll_rl.runs.rebuild import verify as findings

    saved = download_run(run) if is_hub_name(run) and "/" in run else None
    faults = 0
    for what, fault in findings(saved.folder if saved else Path(run), saved):
        typer.echo(f"{what}: {fault or 'ok'}")
        faults += fault is not None
    raise typer.Exit(int(faults > 0))


@app.command()
def report(
    folder: Annotated[
        Path,
        typer.Argument(metavar="RUN|COMPARISON", help="a run folder, or that of a comparison", callback=as_in_a_shell),
    ],
    output: Annotated[
        Path | None, typer.Option(help="the page's file; default: report.html in the folder", callback=writable)
    ] = None,
) -> None:
    """Write one HTML page about a run or a comparison: curves, answers, settings; it needs no network to be read."""
    from eggroll_rl import report as runs
    from eggroll_rl.comparison import pages as comparisons

    writer = comparisons if (folder / comparisons.FILE).is_file() else runs
    typer.echo(f"{writer.write_report(folder, output)}")


@app.command()
def recipes() -> None:
    """List the shipped recipes."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name in shipped_recipes():
        table.add_row(name, load_recipe(name).description)
    Console(markup=False, emoji=False).print(table)


@app.command()
def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    replicas: Annotated[int | None, typer.Option(min=1, help="also foresee a generation with so many")] = None,
    bench: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN|JSON", help="what that is reckoned from; default: the output_dir", callback=as_in_a_shell
        ),
    ] = None,
) -> None:
    """Say what a recipe would load, generate and hold in memory, without loading its model."""
    resolved = found(load_recipe(recipe, overrides or []))
    from eggroll_rl.planning.memory import plan as lines_of

    table = Table(box=None, show_header=False, pad_edge=False)
    for what, much in lines_of(resolved):
        table.add_row(what, much)
    console = Console(markup=False, emoji=False)
    console.print(table)
    if replicas is not None:
        from eggroll_rl.planning.forecast import load_timings, scaling, scaling_table

        forecasts, conclusions = scaling(resolved, load_timings(bench or [resolved.output_dir]), replicas)
        console.print("", scaling_table(forecasts, replicas), "", *conclusions, sep="\n")


def main() -> None:
    """Entry point of ``eggroll-rl``."""
    logging.getLogger("eggroll_rl").setLevel(logging.INFO)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # the run has its own display
    run_app(app)
