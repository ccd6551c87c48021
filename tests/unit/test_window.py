"""Whole tensors through a window of shared memory, from ranks that hold parts of them and back; no vLLM."""

from itertools import pairwise
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from eggroll_rl.engines.vllm.window import (
    Parts,
    WorkerTensors,
    load_into_workers,
    open_window,
    part_specs,
    pieces_from,
    specs_as_plain,
    specs_from,
)
from eggroll_rl.es import tensors as tensors_module
from eggroll_rl.es.hashing import tensors_hash
from eggroll_rl.es.parameters import EvolvedParameter
from eggroll_rl.es.tensors import Held, Spec

Parameters = dict[str, EvolvedParameter]


class Ranks:
    """The workers' methods of the learner's state, for ranks that have these parts of parameters."""

    def __init__(self, parts: list[Parameters], whole: Parameters):
        self.parts, self.whole = parts, whole
        self.tensors: list[dict[str, Tensor]] = []
        self.windows: list[int] = []
        self.published = 0

    def call(self, method: str, *arguments: Any) -> list[Any]:
        return [getattr(self, method)(rank, *arguments) for rank in range(len(self.parts))]

    def eggroll_make_room(self, rank: int, specs: dict[str, Any]) -> None:
        own = part_specs(specs_from(specs), self.parts[rank], self.whole)
        self.tensors[rank:] = [{key: torch.empty(shape, dtype=dtype) for key, (dtype, shape) in own.items()}]

    def eggroll_write(self, rank: int, window: str, shard: list[Any]) -> None:
        self._parts(rank).copy(open_window(window), pieces_from(shard), into_window=False)

    def eggroll_go_on(self, rank: int) -> None:
        self.published += 1

    def eggroll_specs(self, rank: int, weights_only: bool) -> dict[str, Any]:
        return specs_as_plain(self._parts(rank).specs)

    def eggroll_read(self, rank: int, window: str, shard: list[Any], weights_only: bool) -> None:
        self.windows.append(len(open_window(window)))
        self._parts(rank).copy(open_window(window), pieces_from(shard), into_window=True)

    def _parts(self, rank: int) -> Parts:
        return Parts(self.tensors[rank], self.parts[rank], self.whole)


def cuts(size: int, ranks: int) -> list[tuple[int, int]]:
    """Where each rank begins and how much it has."""
    ends = [rank * size // ranks for rank in range(ranks + 1)]
    return [(start, stop - start) for start, stop in pairwise(ends)]


@settings(deadline=None)
@given(st.integers(4, 9), st.integers(4, 9), st.integers(1, 4), st.integers(1, 300))
def test_a_state_comes_back_from_all_ranks_whatever_a_shard_takes(O: int, I: int, ranks: int, limit: int) -> None:  # noqa: E741
    """Parts by rows, by columns, by rows that two ranks share, and whole; with what goes with a matrix."""
    whole = {name: EvolvedParameter(name, (O, I), "lowrank") for name in ("m.rows", "m.columns", "m.shared", "m.whole")}
    parts: list[Parameters] = []
    for rank in range(ranks):
        (row, rows), (column, columns) = cuts(O, ranks)[rank], cuts(I, ranks)[rank]
        shared, size = cuts(O, -(-ranks // 2))[rank // 2]
        regions = [(row, 0, rows, I), (0, column, O, columns), (shared, 0, size, I), (0, 0, O, I)]
        parts.append(
            {
                name: EvolvedParameter(name, (rows_, columns_), "lowrank", (row_, column_))
                for name, (row_, column_, rows_, columns_) in zip(whole, regions, strict=True)
            }
        )
    torch.manual_seed(O * I * ranks)
    state: dict[str, Tensor] = {"step.m.rows": torch.tensor(3.0), "rows.m.whole": torch.rand(O)}
    for name in whole:
        state |= {f"master.{name}": torch.randn(O, I), f"half.{name}": torch.randn(O, I).bfloat16()}
    state["residual.m.whole"] = torch.randint(0, 255, (O, -(-I // 2)), dtype=torch.uint8)

    workers = Ranks(parts, whole)
    original, tensors_module.SHARD = tensors_module.SHARD, limit
    try:
        load_into_workers(workers.call, Held(state))
        found = WorkerTensors(workers.call)
        assert workers.published == ranks
        assert found.specs == {key: Spec.of(tensor) for key, tensor in state.items()}
        assert tensors_hash(found) == tensors_hash(state)
        assert all(torch.equal(found[key], tensor) for key, tensor in state.items())
    finally:
        tensors_module.SHARD = original
    for rank, own in enumerate(workers.tensors):
        for name, part in parts[rank].items():
            row, column = part.offset
            inside = state[f"master.{name}"][row : row + part.shape[0], column : column + part.shape[1]]
            assert torch.equal(own[f"master.{name}"], inside)
    assert max(workers.windows) <= max(limit, 4 * I) + 8
