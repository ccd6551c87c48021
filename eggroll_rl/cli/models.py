"""Commands that ask a model."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from eggroll_rl.cli.arguments import as_in_a_shell, found_model, writable


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
    k: Annotated[int, typer.Option("--k", help="also sample k answers of each problem, for pass@k and maj@k")] = 1,
    temperature: Annotated[float, typer.Option(help="of the sampled answers")] = 1.0,
    max_new_tokens: Annotated[int | None, typer.Option(help="length of an answer; default: the model's own")] = None,
    seed: Annotated[int, typer.Option(help="of the sampled answers")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write the result to this file", callback=writable)
    ] = None,
) -> None:
    """Greedy accuracy with its Wilson 95 % interval, pass@k, and maj@k: what most samples say."""
    found_model(model)
    from eggroll_rl.eval.evaluate import Questions, evaluate_model

    questions = Questions(data, subset, prompt, prompt_column, reward, chat)
    result = evaluate_model(
        model, task, split, n, k, temperature, max_new_tokens, seed, questions, base, overrides or ()
    )
    line = f"accuracy {result['accuracy']:.1%} [{result['low']:.1%}, {result['high']:.1%}] of {result['n']}"
    sampled = [f"{name} {value:.1%}" for name, value in result.items() if name.startswith(("pass@", "maj@"))]
    typer.echo("  ".join([line, *sampled]))
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2) + "\n")


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
    found_model(model)
    from eggroll_rl.ask import ask as ask_model

    ask_model(model, prompt, overrides or [], generation, base)


def bench(
    model: Annotated[
        list[str] | None,
        typer.Option(help="a preset (rwkv7-256x4, smollm2-135m, egg, egg-64x2) or a model; may be repeated"),
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="rows of each member; default: the preset's")] = None,
    members: Annotated[int | None, typer.Option(min=2, help="population size; default: the preset's")] = None,
    tokens: Annotated[int | None, typer.Option(min=16, help="length of an answer; default: the preset's")] = None,
    repeats: Annotated[
        int | None,
        typer.Option(
            min=1, help="rounds of a model, medians are shown; default: as many as 25 seconds hold, at least 5"
        ),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="transformers' generate and full-rank ES, too: minutes")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write all figures to this file", callback=writable)
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="draw the throughputs into this PNG file", callback=writable)
    ] = None,
) -> None:
    """Throughput of a population against plain inference and bare matrix products, in one run."""
    for name in model or ():
        found_model(name)
    from eggroll_rl.planning.bench import ALL, draw_bench, measure

    results = [measure(name, members, rows, tokens, repeats, full) for name in model or ALL]
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
