"""Decoding by ordinary forward passes where the head alone evolves: rows that have read the same tokens are read as
one, and each row's perturbation is added to what the head makes of them.

Legend: M rows of a batch, U prefixes, T tokens, D width, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from eggroll_rl.engines.local.cache import new_cache
from eggroll_rl.engines.local.eager import EagerDecoder
from eggroll_rl.engines.local.prefixes import Prefixes
from eggroll_rl.engines.local.state import masks_padding, select_rows
from eggroll_rl.es.layers import PopulationLayers
from eggroll_rl.es.parameters import EvolvedParameter
from eggroll_rl.es.perturbation import Members


class SharingDecoder(EagerDecoder):
    """An ``EagerDecoder`` of a model for which ``can_share`` holds. The unperturbed model's rows are read each."""

    def __init__(self, model: PreTrainedModel, layers: PopulationLayers, head: EvolvedParameter):
        super().__init__(model, layers, "eager, same tokens read once")
        self.head, self._watch = head, HeadWatch(model)
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
        logits_UV = self._step(token_UT, mask_UT, None)
        of_M = self.prefixes.of_M
        logits_MV = logits_UV[of_M]
        members.noise[self.head.name].add_product_(logits_MV, self._watch.read[of_M, -1], members)
        return logits_MV

    def keep(self, index_M: Tensor) -> None:
        if self.prefixes is None:
            super().keep(index_M)
            return
        before, self.rows = self.prefixes.count, len(index_M)
        for layer in self.state.layers:
            layer.rows = self.rows
        self.state = select_rows(self.state, self.prefixes.keep(index_M), before)

    def close(self) -> None:
        super().close()
        self._watch.remove()


class HeadWatch:
    """What a model's head has read and made last.

    Attributes:
        read: [M, T, D].
        made: [M, T, V].
    """

    read: Tensor
    made: Tensor

    def __init__(self, model: PreTrainedModel):
        self._handle = model.get_output_embeddings().register_forward_hook(self._take)

    def _take(self, head: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        self.read, self.made = inputs[0], output

    def remove(self) -> None:
        self._handle.remove()


@torch.inference_mode()
def can_share(model: PreTrainedModel, evolved: Sequence[EvolvedParameter]) -> bool:
    """Whether only the head of a model evolves, with low-rank noise; every layer attends to all tokens under the mask;
    and the logits are what the head makes, which a forward pass of one token tells."""
    head = model.get_output_embeddings()
    if [(parameter.kind, model.get_parameter(parameter.name) is head.weight) for parameter in evolved] != [
        ("lowrank", True)
    ]:
        return False
    if not masks_padding(model) or any(
        type(layer) is not DynamicLayer for layer in DynamicCache(config=model.config).layers
    ):
        return False
    watch = HeadWatch(model)
    logits = model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False).logits
    watch.remove()
    return bool(logits.data_ptr() == watch.made.data_ptr())
