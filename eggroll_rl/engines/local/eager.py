"""Decoding by ordinary forward passes of any causal language model.

Legend: M rows of a batch, T tokens, V vocabulary.
"""

import inspect
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from eggroll_rl.engines.local.cache import new_cache, with_room
from eggroll_rl.engines.local.common_prefix import LEAST, can_share, common_tokens, of_members
from eggroll_rl.engines.local.state import (
    can_be_merged,
    makes_own_state,
    masks_padding,
    merge_rows,
    select_rows,
    state_name,
    state_of,
)
from eggroll_rl.es.layers import PopulationLayers
from eggroll_rl.es.perturbation import Members
from eggroll_rl.system.errors import UsageError

NEAR = 0.1  # of the logits' standard deviation: more than rounding in any dtype, less than a wrong state does

PromptGrouping = Literal["padded", "merged", "alike"]


class EagerDecoder:
    """Keeps what the model gives back from token to token; where it gives nothing back, reads everything again.

    Prompts of different lengths are ``padded`` where every layer passes over padding. Where a recurrent layer might
    read it, those of one length are read together and their states ``merged``; where these cannot be, a batch has
    prompts that are ``alike`` in length. Which of the two it is, and whether a state can be kept at all and its rows be
    chosen, a trial of three tokens shows. What padded prompts begin with alike is read once for each member.

    Raises:
        UsageError: the model's own code fails.
    """

    is_fixed = False

    def __init__(self, model: PreTrainedModel, layers: PopulationLayers, description: str = "eager"):
        self.model, self.layers, self.description = model, layers, description
        self.name, self.makes_own = state_name(model), makes_own_state(model)
        arguments = inspect.signature(model.forward).parameters.values()
        self.takes_more = any(argument.kind == argument.VAR_KEYWORD for argument in arguments)
        self.arguments = {argument.name for argument in arguments}
        self.state: Any = None
        self.token_MT: Tensor | None = None  # all so far, where there is no state
        self.rows = self.tokens = 0
        self.shares = can_share(model)
        self.longest = self.common = 0  # tokens of the prompts, and of what they begin with alike
        self.prompts: PromptGrouping = "padded"
        if not masks_padding(model):
            self._try()

    @property
    def pads(self) -> bool:
        return self.prompts != "alike"

    @property
    def wants_pairs(self) -> bool:
        return self.prompts == "merged"

    def begin(self, rows: int, tokens: int) -> None:
        self.rows, self.tokens, self.state, self.token_MT = rows, tokens, None, None
        self.longest = self.common = 0

    def step(self, token_MT: Tensor, mask_MT: Tensor, members: Members | None) -> Tensor:
        if self.name is None:
            self.token_MT = token_MT if self.token_MT is None else torch.cat((self.token_MT, token_MT), dim=1)
            return self._forward(self.token_MT, mask_MT, members, use_cache=False).logits[:, -1]
        if self.state is not None:
            return self._step(token_MT, mask_MT, members)
        if self.prompts == "merged":
            return self._read_by_length(token_MT, mask_MT, members)
        if not self.makes_own:
            self.state = new_cache(self.model.config, self.tokens)
            token_MT = self._read_common(token_MT, mask_MT, members)
        return self._step(token_MT, mask_MT, members)

    def keep(self, index_M: Tensor) -> None:
        if self.token_MT is not None:
            self.token_MT = self.token_MT[index_M]
        else:
            self.state = select_rows(self.state, index_M, self.rows)
        self.rows = len(index_M)

    def weights_changed(self) -> None:
        """Nothing to forget: each forward pass reads the weights."""

    def nbytes(self) -> int:
        return 0

    def close(self) -> None:
        self.state = self.token_MT = None

    def _read_common(self, token_MT: Tensor, mask_MT: Tensor, members: Members | None) -> Tensor:
        """Read what the prompts begin with alike, if it is worth it; returns the tokens that are left."""
        common = common_tokens(token_MT, mask_MT) if self.shares else 0
        if common < LEAST:
            return token_MT
        of_M, first = of_members(members, len(token_MT), token_MT.device)
        count = int(of_M[-1]) + 1
        if count == len(token_MT):
            return token_MT
        begin = token_MT.shape[1] - int(mask_MT[0].sum())
        token_UT = token_MT[:1, begin : begin + common].expand(count, -1)
        self._step(token_UT, torch.ones_like(token_UT), first)
        self.state = select_rows(self.state, of_M, count)
        self.longest, self.common = token_MT.shape[1], common
        return token_MT[:, common:]

    def _in_place(self, mask_MT: Tensor) -> Tensor:
        """The mask of the tokens as they are kept: what is common comes before the padding."""
        own = self.longest - self.common
        return torch.cat((mask_MT[:, own : self.longest], mask_MT[:, :own], mask_MT[:, self.longest :]), dim=1)

    def _step(self, token_MT: Tensor, mask_MT: Tensor, members: Members | None) -> Tensor:
        assert self.name is not None
        if self.common:
            mask_MT = self._in_place(mask_MT)
        outputs = self._forward(token_MT, mask_MT, members, use_cache=True, **{self.name: self.state})
        self.state = state_of(outputs)
        return outputs.logits[:, -1]

    def _read_by_length(self, token_MT: Tensor, mask_MT: Tensor, members: Members | None) -> Tensor:
        """The prompts' logits and the state of all rows; those of one length are read together, without padding."""
        length_M = mask_MT.sum(1)
        logits, states, groups = [], [], []
        for length in sorted(set(length_M.tolist()), reverse=True):
            index = (length_M == length).nonzero()[:, 0]
            self.state = None if self.makes_own else new_cache(self.model.config)
            tokens, mask = token_MT[index, -length:], mask_MT[index, -length:]
            logits.append(self._step(tokens, mask, members and members.of_rows(index)))
            states.append(self.state)
            groups.append(index)
        if len(groups) > 1:
            order_M = torch.cat(groups).argsort()
            self.state = select_rows(merge_rows(states, [len(group) for group in groups]), order_M, self.rows)
            logits = [torch.cat(logits)[order_M]]
        self.state = with_room(self.state, self.tokens)
        return logits[0]

    def _forward(self, token_MT: Tensor, mask_MT: Tensor, members: Members | None, **state: Any) -> Any:
        position_MT = (mask_MT.cumsum(1) - 1).clamp_min(0)[:, -token_MT.shape[1] :]
        arguments = {"position_ids": position_MT, "logits_to_keep": 1, **state}
        if self.prompts == "padded" or (self.prompts == "merged" and "position_ids" in self.arguments):
            arguments["attention_mask"] = mask_MT
        known = {name: value for name, value in arguments.items() if self.takes_more or name in self.arguments}
        with self.layers.of(members):
            return self.model(input_ids=token_MT, **known)

    @torch.inference_mode()
    def _try(self) -> None:
        """Choose the first way in which rows go on, after one has left, as they do when they are read again whole."""
        name = self.name
        if name and can_be_merged(self.model) and self._goes_on(name, "merged", (1, 0, 1)):
            return
        if name and self._goes_on(name, "alike", (0, 0, 0)):
            return
        self.name, self.prompts = None, "alike"

    def _goes_on(self, name: str, prompts: PromptGrouping, pads: tuple[int, int, int]) -> bool:
        """Whether two of three rows, with so much padding before prompts of two tokens, go on rightly."""
        token_3T = torch.tensor([[3, 4, 5, 6], [5, 4, 3, 6], [4, 6, 5, 3]], device=self.model.device)
        token_3T %= self.model.config.vocab_size
        mask_3T, last = torch.ones_like(token_3T), torch.tensor([1, 2], device=self.model.device)
        for row, padding in enumerate(pads):
            mask_3T[row, :padding] = 0
        expected_2V = torch.cat([self._read_whole(token_3T[[row], pads[row] :]) for row in (1, 2)])
        self.name, self.prompts = name, prompts
        self.begin(3, 4)
        try:
            self.step(token_3T[:, :2], mask_3T[:, :2], None)
            self.step(token_3T[:, 2:3], mask_3T[:, :3], None)
            self.keep(last)
            given_2V = self.step(token_3T[last, 3:], mask_3T[last], None)
        except Exception:  # whatever a model's own code raises
            return False
        is_kept = self.state is not None
        self.close()
        return is_kept and _agree(given_2V, expected_2V)

    def _read_whole(self, token_1T: Tensor) -> Tensor:
        self.name, self.prompts = None, "alike"
        self.begin(1, token_1T.shape[1])
        try:
            return self.step(token_1T, torch.ones_like(token_1T), None)
        except Exception as error:  # likewise
            raise UsageError(f"{type(self.model).__name__} does not run: {' '.join(str(error).split())}") from error


def _agree(given_MV: Tensor, expected_MV: Tensor) -> bool:
    if given_MV.shape != expected_MV.shape:
        return False
    return bool((given_MV - expected_MV).abs().max() < NEAR * expected_MV.float().std())
