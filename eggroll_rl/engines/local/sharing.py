"""Decoding by ordinary forward passes where the head alone evolves: rows that have read the same tokens are read as
one, and each row's perturbation is added to what the head makes of them.

Legend: M rows of a batch, U prefixes, T tokens, D width, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from eggroll_rl.engines.local.cache import new_cache
from eggroll_rl.engines.local.common_prefix import can_share
from eggroll_rl.engines.local.eager import EagerDecoder
from eggroll_rl.engines.local.prefixes import Prefixes
from eggroll_rl.engines.local.state import select_rows
from eggroll_rl.es.layers import PopulationLayers
from eggroll_rl.es.parameters import EvolvedParameter
from eggroll_rl.es.perturbation import Members


class SharingDecoder(EagerDecoder):
    """An ``EagerDecoder`` of a model for which ``can_read_once`` holds; unperturbed rows are read one by one."""

    def __init__(self, model: PreTrainedModel, layers: PopulationLayers, head: EvolvedParameter):
        super().__init__(model, layers, "eager, same tokens read once")
        self.head = head
        self.prefixes: Prefixes | None = None

    def begin(self, rows: int, tokens: int) -> None:
        super().begin(rows, tokens)
        self.prefixes = None

    def step(self, token_MT: Tensor, mask_MT: Tensor, members: Members | None) -> Tensor:
        if members is None:
            return super().step(token_MT, mask_MT, None)
        if self.prefixes is None:
            self.prefixes, token_UT, mask_UT = Prefixes.of_prompts(token_MT, mask_MT)
            self.state = new_cache(self.model.config, self.tokens, self.rows)
        else:
            token_U, from_U = self.prefixes.follow(token_MT[:, 0])
            for layer in self.state.layers:
                layer.copy_rows(from_U)
            row_M, begin = self.prefixes.rows()
            token_UT, mask_UT = token_U[:, None], mask_MT[row_M[begin[:-1]]]
        with _watched(self.model) as seen:
            logits_UV = self._step(token_UT, mask_UT, None)
        ((x_UTD, _),), of_M = seen, self.prefixes.of_M
        logits_MV = logits_UV[of_M]
        members.noise[self.head.name].add_product_(logits_MV, x_UTD[of_M, -1], members)
        return logits_MV

    def keep(self, index_M: Tensor) -> None:
        if self.prefixes is None:
            super().keep(index_M)
            return
        before, self.rows = self.prefixes.count, len(index_M)
        self.state = select_rows(self.state, self.prefixes.keep(index_M), before)


@torch.inference_mode()
def can_read_once(model: PreTrainedModel, evolved: Sequence[EvolvedParameter]) -> bool:
    """Whether only the head of a model evolves, with low-rank noise; every layer keeps keys and values of all tokens
    under the mask; and the logits are what the head makes, which a forward pass of one token tells."""
    head = model.get_output_embeddings().weight
    if [(found.kind, model.get_parameter(found.name) is head) for found in evolved] != [("lowrank", True)]:
        return False
    if not can_share(model):
        return False
    with _watched(model) as seen:
        logits = model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False).logits
    return [made.data_ptr() for _, made in seen] == [logits.data_ptr()]


@contextmanager
def _watched(model: PreTrainedModel) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """In the block, what the head reads, [M, T, D], and makes, [M, T, V], of each forward pass."""
    seen: list[tuple[Tensor, Tensor]] = []

    def take(_: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((inputs[0], output))

    handle = model.get_output_embeddings().register_forward_hook(take)
    try:
        yield seen
    finally:
        handle.remove()
