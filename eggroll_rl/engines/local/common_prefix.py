"""What the prompts of a batch begin with alike, a system prompt say, is read once for each member and not for each row.

Keys and values of the common tokens are then copied to the member's rows, in front of all that differs: where prompts
are padded on the left, the padding comes after them, and the mask says so.

Legend: M rows of a batch, U members of it, T tokens, S common tokens.
"""

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from eggroll_rl.engines.local.state import makes_own_state, masks_padding, state_name
from eggroll_rl.es.perturbation import Members

LEAST = 16  # common tokens that are worth a forward pass of their own


def can_share(model: PreTrainedModel) -> bool:
    """Whether every layer of a model keeps keys and values of all tokens, under the mask and at the positions given."""
    if state_name(model) is None or makes_own_state(model) or not masks_padding(model):
        return False
    return {type(layer) for layer in DynamicCache(config=model.config).layers} == {DynamicLayer}


def common_tokens(token_MT: Tensor, mask_MT: Tensor) -> int:
    """S: with how many of the same tokens all of these left-padded prompts begin; each has one more at least."""
    T, length_M = token_MT.shape[1], mask_MT.sum(1)
    place_T = torch.arange(T, device=token_MT.device)
    begun_MT = token_MT.gather(1, (T - length_M[:, None] + place_T).clamp_max(T - 1))
    alike_T = (begun_MT == begun_MT[:1]).all(0) & (place_T < length_M.min() - 1)
    return int(alike_T.long().cumprod(0).sum())


def of_members(members: Members | None, rows: int, device: torch.device) -> tuple[Tensor, Members | None]:
    """The member, counted from 0, of each of M rows, [M]; and the members with one row each.

    Rows of a member follow one another. Unperturbed rows are all of one.
    """
    if members is None:
        return torch.zeros(rows, dtype=torch.long, device=device), None
    pair_M = members.pairs_of_rows(next(iter(members.noise.values())).pairs)
    key_M = pair_M * 2 + (members.coefficient_M < 0)
    is_first_M = key_M.diff(prepend=key_M[:1] - 1) != 0
    dense_M = members.dense_coefficient_M
    first = Members(
        members.noise,
        members.coefficient_M[is_first_M],
        None if members.pair_M is None else pair_M[is_first_M],
        None if dense_M is None else dense_M[is_first_M],
    )
    return is_first_M.cumsum(0) - 1, first
