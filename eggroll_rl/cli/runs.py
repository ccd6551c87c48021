"""Commands that take a run."""

from pathlib import Path
from typing import Annotated

import typer

from eggroll_rl.cli.arguments import RunArgument, as_in_a_shell, writable
from eggroll_rl.config import Exported
from eggroll_rl.system.errors import UsageError


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


def verify(
    run: Annotated[str, typer.Argument(help="a run folder, or the name of a run on the hub", callback=as_in_a_shell)],
) -> None:
    """Replay a run and compare what it saved with the replay; exit code 1 where something differs."""
    from eggroll_rl.models.naming import is_hub_name
    from eggroll_rl.system.hub import fetch

    is_published = is_hub_name(run) and "/" in run
    if is_published:  # found, or told, before the heavy imports
        try:
            fetch(run, "config.json")
        except UsageError as error:
            raise UsageError(f"no run {run!r}, neither as a folder nor on the hub: {error}") from error
    from eggroll_rl.hub import download_run
    from eggroll_rl.runs.rebuild import verify as findings

    saved = download_run(run) if is_published else None
    faults = 0
    for what, fault in findings(saved.folder if saved else Path(run), saved):
        typer.echo(f"{what}: {fault or 'ok'}")
        faults += fault is not None
    raise typer.Exit(int(faults > 0))


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
