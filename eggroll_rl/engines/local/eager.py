"""Decoding by ordinary forward passes of any causal language model.

Legend: M rows of a batch, T tokens, V vocabulary.
"""

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from eggroll_rl.engines.local.cache import new_cache
from eggroll_rl.engines.local.state import NAMES, makes_own_state, masks_padding, select_rows, state_name
from eggroll_rl.system.errors import UsageError

NEAR = 0.1  # of the logits' standard deviation: more than rounding in any dtype, less than a wrong state does


class EagerDecoder:
    """Keeps what the model gives back from token to token; where it gives nothing back, reads everything again.

    Whether a state that is not plain attention's can be kept, and its rows be chosen, is found out by a trial.

    Attributes:
        pads: whether prompts of different lengths may be in one batch.

    Raises:
        UsageError: the model's own code fails.
    """

    def __init__(self, model: PreTrainedModel):
        self.model, self.name, self.makes_own = model, state_name(model), makes_own_state(model)
        arguments = inspect.signature(model.forward).parameters.values()
        self.takes_more = any(argument.kind == argument.VAR_KEYWORD for argument in arguments)
        self.arguments = {argument.name for argument in arguments}
        self.state: Any = None
        self.token_MT: Tensor | None = None  # all so far, where there is no state
        self.pads = masks_padding(model)
        if not self.pads:
            self._try()

    def begin(self, rows: int, tokens: int) -> None:
        """Get ready for the prompts of ``rows`` rows of at most so many tokens, answers included."""
        self.token_MT = None
        self.state = None if self.name is None or self.makes_own else new_cache(self.model.config, tokens)

    def step(self, token_MT: Tensor, mask_MT: Tensor) -> Tensor:
        """Logits [M, V] after the prompts, or after one more token; the mask is of all tokens so far."""
        if self.name is None:
            self.token_MT = token_MT if self.token_MT is None else torch.cat((self.token_MT, token_MT), dim=1)
            return self._forward(self.token_MT, mask_MT, use_cache=False).logits[:, -1]
        outputs = self._forward(token_MT, mask_MT, use_cache=True, **{self.name: self.state})
        self.state = next((outputs[name] for name in NAMES if name in outputs), None)
        return outputs.logits[:, -1]

    def keep(self, index_M: Tensor, rows: int) -> None:
        """Go on with these rows out of ``rows``."""
        if self.token_MT is not None:
            self.token_MT = self.token_MT[index_M]
        else:
            self.state = select_rows(self.state, index_M, rows)

    def _forward(self, token_MT: Tensor, mask_MT: Tensor, **state: Any) -> Any:
        position_MT = (mask_MT.cumsum(1) - 1).clamp_min(0)[:, -token_MT.shape[1] :]
        arguments = {"position_ids": position_MT, "logits_to_keep": 1, **state}
        if self.pads:
            arguments["attention_mask"] = mask_MT
        known = {name: value for name, value in arguments.items() if self.takes_more or name in self.arguments}
        return self.model(input_ids=token_MT, **known)

    @torch.inference_mode()
    def _try(self) -> None:
        """Do without the state where rows, after one has left, go on otherwise than rows that are read again whole."""
        device, name = self.model.device, self.name
        token_3T = torch.tensor([[3, 4, 5], [5, 4, 3], [4, 3, 5]], device=device) % self.model.config.vocab_size
        mask_3T, last = torch.ones_like(token_3T), torch.tensor([1, 2], device=device)
        self.name = None
        try:
            for length in (1, 3):
                self.begin(2, length)
                expected_2V = self.step(token_3T[last, :length], mask_3T[last, :length])
        except Exception as error:  # whatever a model's own code raises
            raise UsageError(f"{type(self.model).__name__} does not run: {' '.join(str(error).split())}") from error
        self.name = name
        try:
            self.begin(3, 3)
            self.step(token_3T[:, :1], mask_3T[:, :1])
            self.step(token_3T[:, 1:2], mask_3T[:, :2])
            self.keep(last, 3)
            given_2V = self.step(token_3T[last, 2:], mask_3T[last])
        except Exception:  # likewise
            self.name = None
        else:
            self.name = name if self.state is not None and _agree(given_2V, expected_2V) else None
        self.state = self.token_MT = None


def _agree(given_MV: Tensor, expected_MV: Tensor) -> bool:
    if given_MV.shape != expected_MV.shape:
        return False
    return bool((given_MV - expected_MV).abs().max() < NEAR * expected_MV.float().std())
