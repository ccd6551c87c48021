"""Decoding steps whose tensors keep their addresses, so that a CUDA graph can hold them: a token of all rows costs one
launch, where an ordinary forward pass costs hundreds.

Keys and values, where a model has them, have room for the whole answer and every token attends over all of it, under a
mask; the rows are rounded up to one of few sizes, with a graph for each. Uncaptured, the same steps run on any device.

Legend: M rows of a batch, R rows of a step (M rounded up), T tokens, V vocabulary.
"""

import logging
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from eggroll_rl.engines.local.memories import new_memory
from eggroll_rl.engines.local.state import state_of
from eggroll_rl.es.layers import PopulationLayers
from eggroll_rl.es.perturbation import Members

logger = logging.getLogger(__name__)

TOKENS = 128  # capacities are multiples of it, so that prompts of about the same length share their graphs
WARMUPS = 2  # runs before a capture: kernels compile, libraries allocate


class StaticDecoder:
    """Decodes in a ``StaticStep``, which batches share as long as they fit; on CUDA in graphs.

    Args:
        model: one that ``can_be_static``.
        layers: the model's hooks.
    """

    pads = is_fixed = wants_pairs = True

    def __init__(self, model: PreTrainedModel, layers: PopulationLayers):
        self.model, self.layers = model, layers
        self.capture = model.device.type == "cuda"
        self.current: StaticStep | None = None

    @property
    def description(self) -> str:
        return "CUDA graphs" if self.capture else "static"

    def begin(self, rows: int, tokens: int) -> None:
        capacity = -(-tokens // TOKENS) * TOKENS
        if self.current is None or not self.current.holds(rows, capacity):
            self.current = None  # its memory goes first
            self.current = StaticStep(self.model, self.layers, rows, capacity, self.capture)
        self.current.begin()

    def step(self, token_MT: Tensor, mask_MT: Tensor, members: Members | None) -> Tensor:
        assert self.current is not None
        return self.current(token_MT, mask_MT, members)

    def keep(self, index_M: Tensor) -> None:
        assert self.current is not None
        self.current.keep(index_M)

    def weights_changed(self) -> None:
        """Nothing to forget: a step reads the weights where they are."""

    def nbytes(self) -> int:
        return self.current.nbytes() if self.current else 0

    def close(self) -> None:
        self.current = None


class Captured(NamedTuple):
    """A CUDA graph and the tensor that it leaves its logits in."""

    graph: Any
    logits_RV: Tensor


class StaticStep:
    """Answers of up to ``rows`` rows and, of a model that attends, ``capacity`` tokens, prompts included.

    Args:
        model: its forward pass is the step.
        layers: the model's hooks.
        rows: of the largest batch.
        capacity: tokens of a row, prompt and answer; a multiple of ``TOKENS``.
        capture: hold the steps in CUDA graphs.
    """

    def __init__(self, model: PreTrainedModel, layers: PopulationLayers, rows: int, capacity: int, capture: bool):
        self.model, self.layers, self.rows, self.capacity, self.capture = model, layers, rows, capacity, capture
        self.memory = new_memory(model, rows, capacity)
        self.token_R1 = torch.zeros(rows, 1, dtype=torch.long, device=model.device)
        self.pair_R = torch.zeros(rows, dtype=torch.long, device=model.device)
        self.coefficients_R = torch.zeros(2, rows, dtype=model.dtype, device=model.device)  # low-rank, dense
        self.graphs: dict[tuple[int, tuple[int, ...]], Captured] = {}
        self.bound: Members | None = None
        self.addresses: tuple[int, ...] = ()
        self.live = 0  # rows of the batch, 0 before its prompts

    def holds(self, rows: int, capacity: int) -> bool:
        """Whether such a batch fits, without attending over more than twice its room."""
        return rows <= self.rows and (not self.memory.attends or capacity <= self.capacity < 2 * capacity)

    def nbytes(self) -> int:
        """Bytes of what it keeps of its rows."""
        return sum(tensor.nbytes for tensor in self.memory.room())

    def begin(self) -> None:
        """Get ready for the prompts of a new batch."""
        self.live, self.bound, self.addresses = 0, None, ()

    def __call__(self, token_MT: Tensor, mask_MT: Tensor, members: Members | None) -> Tensor:
        """Logits [M, V] after the prompts, or after one more token; the next call overwrites them."""
        if self.live:
            return self._token(token_MT, members)
        self.live = len(token_MT)
        self.size = size_of(self.live, self.rows)
        return self._forward(token_MT, members, self.memory.prompt(mask_MT))

    def keep(self, index_M: Tensor) -> None:
        """Keep these rows of the batch, in smaller steps where they fit."""
        self.memory.keep(index_M)
        self.live = len(index_M)
        self.size = size_of(self.live, self.rows)

    def _token(self, token_M1: Tensor, members: Members | None) -> Tensor:
        self.token_R1[: self.live] = token_M1
        self._bind(members)
        self.memory.advance()
        key = (self.size, self.addresses)
        if self.capture and key not in self.graphs:
            self._capture(key)
        if not self.capture:
            return self._run()[: self.live]
        captured = self.graphs[key]
        captured.graph.replay()
        return captured.logits_RV[: self.live]

    def _bind(self, members: Members | None) -> None:
        """Copy whose rows they are to where the steps look; rows beyond the batch belong to the unperturbed model."""
        if members is self.bound:
            return
        self.bound, self.addresses = members, _addresses(members)
        if members is None:
            return
        self.coefficients_R.zero_()
        self.pair_R.zero_()
        assert members.pair_M is not None, "the noise is of all pairs of the population"
        self.pair_R[: self.live] = members.pair_M
        for own, given in zip(self.coefficients_R, (members.coefficient_M, members.dense_coefficient_M), strict=True):
            if given is not None:
                own[: self.live] = given

    def _run(self) -> Tensor:
        """The step itself."""
        size, members = self.size, self.bound
        if members is not None:
            lowrank_R, dense_R = self.coefficients_R[:, :size]
            members = Members(members.noise, lowrank_R, self.pair_R[:size], dense_R)
        return self._forward(self.token_R1[:size], members, self.memory.token(size))

    def _forward(self, token_RT: Tensor, members: Members | None, arguments: dict[str, Any]) -> Tensor:
        with self.layers.of(members):
            outputs = self.model(input_ids=token_RT, use_cache=True, logits_to_keep=1, **arguments)
        self.memory.take(state_of(outputs))
        return outputs.logits[:, -1]

    def _capture(self, key: tuple[int, tuple[int, ...]]) -> None:
        self.graphs = {other: kept for other, kept in self.graphs.items() if other[1] in ((), key[1])}
        saved = [tensor.clone() for tensor in self.memory.tensors(self.size)]
        try:
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(WARMUPS):
                    self._run()
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            pool = next((captured.graph.pool() for captured in self.graphs.values()), None)  # one replays at a time
            with torch.cuda.graph(graph, pool=pool):
                logits_RV = self._run()
            self.graphs[key] = Captured(graph, logits_RV)
        except RuntimeError as reason:
            logger.warning("decoding without CUDA graphs, one launch for each operation: %s", reason)
            self.capture = False
        for tensor, before in zip(self.memory.tensors(self.size), saved, strict=True):
            tensor.copy_(before)


def size_of(rows: int, largest: int) -> int:
    """``rows`` rounded up to four sizes an octave (..., 8, 10, 12, 14, 16, 20, ...), at most ``largest``."""
    step = max(1, 2 ** ((rows - 1).bit_length() - 3)) if rows > 1 else 1
    return min(largest, -(-rows // step) * step)


def _addresses(members: Members | None) -> tuple[int, ...]:
    """Where the members' noise lies, which a graph reads there."""
    if members is None:
        return ()
    return tuple(tensor.data_ptr() for noise in members.noise.values() for tensor in noise.tensors())
