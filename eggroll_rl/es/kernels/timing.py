"""How fast the kernels are on this device: the numbers behind ``eggroll_rl.es.kernels.choose``."""

import torch
from triton.testing import do_bench

from eggroll_rl.es.kernels import Rates
from eggroll_rl.es.kernels.lowrank import add_lowrank_, add_regenerated_
from eggroll_rl.es.kernels.noise import fill_, whereabouts
from eggroll_rl.es.lowrank import by_pair
from eggroll_rl.es.perturbation import Seeds


def rates(device: torch.device, dtype: torch.dtype = torch.bfloat16, elements: int = 2**28) -> Rates:
    """Noise elements made and bytes moved in a second, over ``elements`` of them."""
    out, other = (torch.empty(elements, dtype=dtype, device=device) for _ in range(2))
    where = whereabouts(0, 0, 0, device)
    made = do_bench(lambda: fill_(out, [(2, 0, elements // 4)], 1, where, "normal")) / 1e3
    moved = do_bench(lambda: other.copy_(out)) / 1e3
    return Rates(elements / made, 2 * out.nbytes / moved)


def lowrank_seconds(
    device: torch.device,
    rows: int = 1024,
    pairs: int = 512,
    width: int = 4096,
    rank: int = 1,
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, float]:
    """Seconds of one matrix's perturbations for a token of every row: in plain torch, and by both kernels."""
    y, x = (torch.randn(rows, width, device=device, dtype=dtype) for _ in range(2))
    A_KOr, B_KIr = (torch.randn(pairs, width, rank, device=device, dtype=dtype) for _ in range(2))
    coefficient_M = torch.full((rows,), 1e-6, device=device)
    seeds = Seeds(pairs, 2, 3, rank, "normal", whereabouts(0, 0, 0, device))

    def plain() -> None:
        h_KMr = torch.bmm(by_pair(x, pairs), B_KIr)
        h_KMr.view(rows, -1).mul_(coefficient_M[:, None])
        by_pair(y, pairs).baddbmm_(h_KMr, A_KOr.mT)

    ways = {
        "torch": plain,
        "read": lambda: add_lowrank_(y, x, A_KOr, B_KIr, coefficient_M),
        "regenerate": lambda: add_regenerated_(y, x, seeds, coefficient_M),
    }
    return {name: do_bench(way) / 1e3 for name, way in ways.items()}
