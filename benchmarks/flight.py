"""All that has to be measured on a GPU, in one command: ``make gpu``, or ``python -m benchmarks.flight OUT``.

A flight has legs, each a command in a process of its own that leaves ``OUT/LEG.json``. A leg that has left it is not
flown again, so that a flight goes on after a fault was mended. ``flight.json`` holds all legs, ``gpu.md`` says them in
tables. ``--size short`` takes ten minutes on a GPU, ``--size small`` a few on a CPU.
"""

import json
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
import typer

from eggroll_rl.system.command import run_command
from eggroll_rl.system.durable import write_json
from eggroll_rl.system.errors import UsageError

ROOT = Path(__file__).parents[1]
ENTRY = (sys.executable, "-m", "eggroll_rl")


class Size(NamedTuple):
    """How far a flight goes; minutes are of training, of each run."""

    device: str
    shapes: tuple[str, ...]
    repeats: int
    tokens: int
    steps: int  # of the warm start of a model that is made there; 0: the one that ships
    learning: tuple[str, ...]  # what the comparison changes in ``countdown_tiny``
    minutes: float  # of each method
    egg: tuple[str, ...]  # what a run of integers changes in ``egg_tiny``


EGG = ("model=egg:256x6", "population.size=16384", "text.group=4")
FULL = Size(
    device="cuda",
    shapes=("rwkv7-2048x24", "qwen2.5-0.5b"),
    repeats=3,
    tokens=64,
    steps=1200,
    learning=("population.size=1024",),
    minutes=3.0,
    egg=(*EGG, "minutes=5"),
)
SHORT = FULL._replace(repeats=2, tokens=32, steps=0, minutes=0.5, egg=(*EGG, "minutes=1"))
SMALL = Size(
    device="cpu",
    shapes=("rwkv7-256x4",),
    repeats=2,
    tokens=16,
    steps=20,
    learning=("population.size=8", "evaluation.n=8", "sampling.max_new_tokens=16", "grpo={prompts: 2, group: 4}"),
    minutes=0.02,
    egg=("model=egg:16x1", "population.size=64", "generations=3", "minutes=1"),
)
SIZES = {"full": FULL, "short": SHORT, "small": SMALL}


class Leg(NamedTuple):
    """Commands, one after the other, and what they found; ``result`` reads it from what they left."""

    commands: list[list[str]]
    result: Callable[[], dict[str, Any]]


def legs(out: Path, size: Size) -> dict[str, Leg]:
    """All legs by name, in the order in which they are flown."""
    return {
        "tests": _tests(out, size),
        **{f"throughput-{shape}": _throughput(out / f"{shape}.bench", shape, size) for shape in size.shapes},
        "learning": _learning(out, size),
        "egg": _egg(out / "egg", size),
    }


def _tests(out: Path, size: Size) -> Leg:
    """The engines on the device, and the kernels compiled; on a CPU the kernels' arithmetic alone, interpreted."""
    on_gpu = ["tests/gpu", "-n", "6"]
    paths = ["tests/unit/test_triton.py", *(on_gpu if size.device == "cuda" else ["-k", "philox"])]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={out / 'tests.xml'}"]
    return Leg([[*command, *paths]], lambda: _counts(out / "tests.xml"))


def _counts(file: Path) -> dict[str, Any]:
    cases = ET.parse(file).getroot().findall(".//testcase")
    failed = [case.get("name") for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {"passed": len(cases) - len(failed) - skipped, "skipped": skipped, "failed": failed}


def _throughput(file: Path, shape: str, size: Size) -> Leg:
    options = [f"--device={size.device}", f"--repeats={size.repeats}", f"--tokens={size.tokens}"]
    command = [sys.executable, "-m", "benchmarks.gpu_throughput", shape, str(file), *options]
    return Leg([command], lambda: dict(json.loads(file.read_text())))


def _learning(out: Path, size: Size) -> Leg:
    """A model that searches, made from nothing on the device, then EGGROLL and GRPO for the same time."""
    made, compared = out / "model", out / "compared"
    build = [sys.executable, "-m", "eggroll_rl.recipes.embedded", "rwkv7-countdown", str(made), "--problems=0"]
    builds = [[*build, f"--steps={size.steps}", f"--device={size.device}"]] if size.steps else []
    model = made if size.steps else "embedded:rwkv7-countdown"
    changes = [f"model={model}", f"engine={{name: local, device: {size.device}}}", *size.learning]
    options = [f"--minutes={size.minutes}", "--seeds=0", f"--output={compared}"]
    return Leg(
        [*builds, [*ENTRY, "compare", "countdown_tiny", *changes, *options]],
        lambda: {"minutes": size.minutes, **_runs(json.loads((compared / "compare.json").read_text()))},
    )


def _runs(compared: dict[str, Any]) -> dict[str, Any]:
    kept = ("method", "accuracy", "low", "high", "n", "rollouts", "tokens_per_second", "peak_memory_gib")
    base = compared["runs"][0]["evaluations"][0]["accuracy"]
    return {"base": base, "runs": [{key: run[key] for key in kept} for run in compared["runs"]]}


def _egg(folder: Path, size: Size) -> Leg:
    changes = [*size.egg, f"engine.device={size.device}", f"output_dir={folder}"]
    return Leg([[*ENTRY, "train", "egg_tiny", *changes]], lambda: _curve(folder / "metrics.jsonl"))


def _curve(file: Path) -> dict[str, Any]:
    records = [json.loads(line) for line in file.read_text().splitlines()]
    points = [
        {"updates": record["generation"], "bits_per_byte": record["bits_per_byte"]}
        for record in records
        if "yardsticks" in record  # of held-out text; the others are of what a population read
    ]
    speeds = [record["tokens_per_second"] for record in records if "tokens_per_second" in record]
    return {"curve": points, "bytes_per_second": sorted(speeds)[len(speeds) // 2]}


def fly(name: str, leg: Leg, out: Path, say: Callable[[str], object]) -> bool:
    """Fly one leg, unless that was done; returns whether it has arrived. What it says is in ``OUT/LEG.log``."""
    file = out / f"{name}.json"
    if file.is_file():
        say(f"{name}: was flown")
        return True
    say(f"{name} ...")
    started = time.perf_counter()
    with (out / f"{name}.log").open("a") as log:
        for command in leg.commands:
            if subprocess.run(command, check=False, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT).returncode:
                say(f"{name}: failed after {time.perf_counter() - started:.0f} s; see {log.name}")
                return False
    seconds = round(time.perf_counter() - started, 1)
    write_json(file, {"seconds": seconds, **leg.result()})
    say(f"{name}: {seconds} s")
    return True


HEAD = """\
# On a GPU

Recipes choose a GPU where there is one (`engine.device: auto`). The engines then hold their steps in CUDA graphs, and
Triton kernels draw noise, add the members' products and run what lies between the products of an RWKV-7.

```bash {data-not-run="it needs a GPU"}
make gpu         # all of what follows, in about 25 minutes; what is measured already is kept
```

runs the GPU's tests, measures throughput against plain inference and bare matrix products, compares EGGROLL with GRPO
for equal time on a model made there from nothing, and pretrains [integers](egg.md); results so far are below.
`python -m benchmarks.flight OUT --size short` takes ten minutes, with the model that ships; `--size small` is the same
on a CPU, shrunk.
"""


def page_of(flight: dict[str, Any]) -> str:
    """The figures in Markdown."""
    where = f"Measured on: {flight['device']}, torch {flight['torch']}."
    parts = [HEAD, f"{where} Parts that failed or were not measured have no table.\n"]
    if "tests" in flight:
        tests = flight["tests"]
        parts.append(f"## Tests\n\n{tests['passed']} passed, {len(tests['failed'])} failed.\n")
    for name in (name for name in flight if name.startswith("throughput-")):
        found = flight[name]
        rows = {f"{what}, tokens/s": f"{speed:,.0f}" for what, speed in found["tokens_per_second"].items()}
        rows |= {what: f"{ratio:.2f}" for what, ratio in found["ratios"].items()}
        if found["kernels"]:
            rates, ways = found["kernels"]["rates"], found["kernels"]["lowrank_seconds"]
            rows |= {"noise elements made in a second": f"{rates['elements']:.1e}"}
            rows |= {"bytes moved in a second": f"{rates['bytes']:.1e}"}
            rows |= {f"rank-1 noise on 1,024 rows of width 4,096, {way}, µs": f"{1e6 * ways[way]:.0f}" for way in ways}
        title = f"## {found['shape']}: {found['members']:,} members, {found['dtype']}, {found['tokens']} tokens"
        parts.append(f"{title}\n\n{_table(('', 'median'), rows.items())}")
    if "learning" in flight:
        learned = flight["learning"]
        runs = [
            (run["method"], f"{run['accuracy']:.1%} [{run['low']:.1%}, {run['high']:.1%}]", f"{run['rollouts']:,}")
            for run in learned["runs"]
        ]
        head = ("method", f"held-out accuracy (before: {learned['base']:.1%})", "rollouts")
        parts.append(f"## Learning, {learned['minutes']:g} minutes each\n\n{_table(head, runs)}")
    if "egg" in flight:
        egg = flight["egg"]
        curve = [(f"{point['updates']:,}", f"{point['bits_per_byte']:.3f}") for point in egg["curve"]]
        speed = f"{egg['bytes_per_second']:,.0f} bytes a second.\n"
        parts.append(f"## Integers\n\n{_table(('updates', 'bits per byte'), curve)}\n{speed}")
    return "\n".join(parts)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(
    out: Annotated[Path, typer.Argument(help="a folder, new or of a flight that goes on")],
    size: Annotated[Literal["full", "short", "small"], typer.Option(help="small: on the CPU")] = "full",
    only: Annotated[list[str] | None, typer.Option(help="these legs alone; what others left stays")] = None,
    page: Annotated[Path | None, typer.Option(help="the figures in tables; default: gpu.md in the folder")] = None,
) -> None:
    """Fly all legs that were not flown yet; exit code 1 where one failed."""
    chosen = SIZES[size]
    if chosen.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("there is no CUDA device here: fly on a machine that has one, or on the CPU by --size small")
    known = legs(out.resolve(), chosen)
    if unknown := set(only or ()) - known.keys():
        raise UsageError(f"--only {', '.join(sorted(unknown))} is no leg: choose from {', '.join(known)}")
    out.mkdir(parents=True, exist_ok=True)
    flown = [fly(name, leg, out.resolve(), typer.echo) for name, leg in known.items() if not only or name in only]
    results = {name: json.loads(file.read_text()) for name in known if (file := out / f"{name}.json").is_file()}
    device = "CPU" if chosen.device == "cpu" else torch.cuda.get_device_name()
    flight = {"device": device, "torch": torch.__version__, **results}
    write_json(out / "flight.json", flight)
    (page or out / "gpu.md").write_text(page_of(flight))
    raise typer.Exit(int(not all(flown)))


if __name__ == "__main__":
    run_command(main)
