"""Throughput of populations against plain inference and against the hardware: ``eggroll-rl bench``, within three
minutes on two cores; ``full`` adds other ways, in minutes more.

Every figure is a median over interleaved repeats in one process, so that a machine whose speed varies treats them
alike.
"""

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from eggroll_rl.engines.local.engine import LocalEngine
from eggroll_rl.planning.bench_egg import PRESETS as EGG_PRESETS
from eggroll_rl.planning.bench_egg import measure_egg
from eggroll_rl.planning.bench_model import SHAPES, Bench, VariedEndings
from eggroll_rl.planning.interleaved import Timed, interleaved, peak_memory

ALL = (*SHAPES, *EGG_PRESETS)  # what is measured where no model is named
TOKENS = {"smollm2-135m": 16}  # of an answer, where 64 would take minutes
SPREAD = "base, lengths spread"


def measure(
    name: str,
    members: int | None,
    rows: int | None,
    tokens: int | None,
    repeats: int | None,
    full: bool = False,
) -> dict[str, Any]:
    """Measure one model: tokens per second, their ratios, shares of a generation and peak memory.

    ``members``, ``rows`` (of each) and ``tokens``: None takes the preset's, or 32 x 1 x 64; ``repeats`` are those of
    ``interleaved``. ``full``: other ways, too, which take minutes: transformers' ``generate``, and full-rank ES.
    """
    tokens = tokens or TOKENS.get(name, 64)
    if name in EGG_PRESETS:
        return measure_egg(name, members, rows, tokens, repeats)
    usual_members, usual_rows = SHAPES.get(name, (32, 1))
    members, rows = members or usual_members, rows or usual_rows
    subject = Bench(name, members, rows, tokens)
    with torch.inference_mode():
        for _ in range(2):
            subject.base()
            subject.matrix_products()
        base_memory = peak_memory()
        subject.draw_noise()
        subject.members_of_population()
        population_memory = peak_memory()
    steps: dict[str, Callable[[], int]] = {
        "base": subject.base,
        "population": subject.members_of_population,
        "matrix_products": subject.matrix_products,
        "noise": subject.draw_noise,
        "update": subject.update,
    }
    others = {"generate": subject.plain_generate, "full_rank": subject.full_rank_member} if full else {}
    with _of_spread_lengths(subject) as spread:
        steps |= {SPREAD: lambda: subject.base_by(spread)} | others
        timed = interleaved(steps, repeats)
    median = {step: timed.median(step) for step in steps}
    speed = {step: timed.speed(step) for step in ("base", "population", "matrix_products", SPREAD, *others)}
    generation = median["noise"] + median["update"] + median["population"]
    noise_bytes = sum(4 * sum(p.shape) for p in subject.engine.evolved) * (members // 2)
    return {
        "model": name,
        "members": members,
        "rows_per_member": rows,
        "tokens": tokens,
        "tokens_per_second": speed,
        "ratios": {
            "population / base": timed.ratio("population", "base"),
            "base / matrix products": timed.ratio("base", "matrix_products"),
            "base, lengths spread / base": timed.ratio(SPREAD, "base"),
            **(_contrasts(timed) if full else {}),
        },
        "shares": {
            "noise, of a generation": median["noise"] / generation,
            "update, of a generation": median["update"] / generation,
            "peak memory over base and noise": (population_memory - base_memory - noise_bytes) / base_memory,
        },
        "seconds": median,
        "peak_memory": {
            "base": base_memory,
            "population": population_memory,
            "noise": noise_bytes,
        },
        "environment": {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "machine": platform.processor(),
        },
    }


def _of_spread_lengths(subject: Bench) -> LocalEngine:
    """The same model, whose answers have 8 to T tokens."""
    own, endings = subject.engine, lambda *_: VariedEndings(subject.tokens)
    return LocalEngine(own.model, own.tokenizer, max_rows=own.max_rows, endings=endings)


def _contrasts(timed: Timed) -> dict[str, float]:
    """``generate`` keeps every row to the end, so where lengths are spread fewer of its tokens count."""
    useful = timed.made[SPREAD] / timed.made["generate"]
    return {
        "base / transformers.generate": timed.ratio("base", "generate"),
        "base / transformers.generate, lengths spread": timed.ratio(SPREAD, "generate") / useful,
        "population / full-rank ES": timed.speed("population") / timed.speed("full_rank"),
    }


def draw_bench(results: list[dict[str, Any]], path: Path) -> None:
    """Bars of tokens per second, one panel a model."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        1, len(results), figsize=(5 * len(results), 3.5), dpi=150, layout="constrained", squeeze=False
    )
    for axes, result in zip(panels[0], results, strict=True):
        speed = {name: value for name, value in result["tokens_per_second"].items() if "spread" not in name}
        order = sorted(speed, key=speed.__getitem__)
        axes.barh(
            order,
            [speed[name] for name in order],
            color=["tab:orange" if n == "population" else "tab:blue" for n in order],
        )
        axes.set(title=f"{result['model']}, {result['members']} x {result['rows_per_member']} rows", xlabel="tokens/s")
    figure.savefig(path)
    plt.close(figure)
