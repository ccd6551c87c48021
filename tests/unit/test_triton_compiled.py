"""The Triton kernels as ptxas takes them: compiled for a GPU that is not here, by the calls that would launch them."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from eggroll_rl.es.kernels.lowrank import add_lowrank_, add_regenerated_  # noqa: E402
from eggroll_rl.es.kernels.noise import fill_, whereabouts  # noqa: E402
from eggroll_rl.es.kernels.time_mix import attended_, mixed_  # noqa: E402
from eggroll_rl.es.kernels.wkv7 import wkv7  # noqa: E402
from eggroll_rl.es.perturbation import Seeds  # noqa: E402

CPU = torch.device("cpu")
Compiled = list[Any]


@pytest.fixture(params=[80, 90], ids=["A100", "H100"])
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Compiled]:
    """What launches compile, instead of launching it."""
    kernels: Compiled = []
    launch = JITFunction.run

    def warm_up(self: Any, *args: Any, **options: Any) -> None:
        kernels.append(launch(self, *args, **{**options, "warmup": True}))

    monkeypatch.setattr(JITFunction, "run", warm_up)
    driver = triton.runtime.driver
    before = driver._active
    driver.set_active(
        SimpleNamespace(
            get_current_device=lambda: request.param,  # Triton keeps what it compiles by device
            get_current_stream=lambda device: 0,
            get_current_target=lambda: GPUTarget("cuda", request.param, 32),
        )
    )
    yield kernels
    driver._active = before
    assert {kernel.metadata.target.arch for kernel in kernels} == {request.param}


def some(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


def by_lowrank(seeded: bool, rank: int, indexed: bool, width: int = 192) -> Callable[[], Any]:
    def call() -> Any:
        pair_M = torch.zeros(8, dtype=torch.long) if indexed else None
        y, x, coefficient_M = some(8, 3, width), some(8, 3, width), some(8)
        if seeded:
            seeds = Seeds(4, 2, 3, rank, "normal", whereabouts(0, 0, 0, CPU))
            return add_regenerated_(y, x, seeds, coefficient_M, pair_M)
        return add_lowrank_(y, x, some(4, width, rank), some(4, width, rank), coefficient_M, pair_M)

    return call


def a_fill(distribution: Any) -> Any:
    return fill_(some(4096), [(2, 0, 256)], 4, whereabouts(0, 0, 0, CPU), distribution)


def a_recurrence(size: int, rows: int) -> Any:
    state = some(rows, 2, size, size, dtype=torch.float32)
    return wkv7(*(some(rows, 1, 2, size) for _ in range(6)), state)


def a_time_mix(size: int, first: bool) -> Any:
    rows = [some(2, 1, 2 * size) for _ in range(8)]
    if first:
        rows[6:] = [None, None]
    norm = torch.nn.GroupNorm(2, 2 * size, dtype=torch.bfloat16)
    state = some(2, 2, size, size, dtype=torch.float32)
    return attended_(*rows, tuple(some(2 * size) for _ in range(3)), norm, state)


CALLS: dict[str, Callable[[], Any]] = {
    **{
        f"low-rank {rank} {'made' if seeded else 'read'} {'by pairs' if indexed else 'in order'}": by_lowrank(
            seeded, rank, indexed
        )
        for rank, seeded, indexed in ((1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1), (2, 1, 1), (3, 0, 1), (4, 1, 0))
    },
    "normal noise": lambda: a_fill("normal"),
    "signs": lambda: a_fill("rademacher"),
    "recurrence, few heads": lambda: a_recurrence(64, 2),
    "recurrence, many heads": lambda: a_recurrence(64, 600),
    "mixing": lambda: mixed_(some(4, 1, 192), some(4, 192), [some(192)] * 6),
    "mixing of one": lambda: mixed_(some(4, 1, 192), some(4, 192), [some(192)]),
    "time mix, first layer": lambda: a_time_mix(64, True),
    "time mix": lambda: a_time_mix(32, False),
}


@pytest.mark.parametrize("name", CALLS)
def test_it_compiles(compiled: Compiled, name: str) -> None:
    CALLS[name]()
    assert len(compiled) == 1
    assert len(compiled[0].asm["cubin"]) > 1000
