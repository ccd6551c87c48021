"""Rows of a batch that have read the same tokens share all that comes of them, where no perturbation is in the way: the
members of a population whose head alone evolves, until they choose different tokens.

Legend: M rows, T tokens, U prefixes (token sequences, each read by one row or more).
"""

from typing import Self

import torch
from torch import Tensor

TOKEN = 32  # bits of a token, below those of a prefix


class Prefixes:
    """Which prefix each row has read.

    Attributes:
        of_M: the prefix of each row, int64.
        count: U; each prefix is some row's.
    """

    def __init__(self, of_M: Tensor, count: int):
        self.of_M, self.count = of_M, count

    @classmethod
    def of_prompts(cls, token_MT: Tensor, mask_MT: Tensor) -> tuple[Self, Tensor, Tensor]:
        """Left-padded prompts as prefixes; their tokens [U, T] and masks [U, T]."""
        both_UX, of_M = torch.cat((token_MT, mask_MT), dim=1).unique(dim=0, return_inverse=True)
        token_UT, mask_UT = both_UX.chunk(2, dim=1)
        return cls(of_M, len(both_UX)), token_UT, mask_UT

    def follow(self, token_M: Tensor) -> tuple[Tensor, Tensor]:
        """Let each row read its token: a prefix whose rows read different ones goes on with one of these, and each
        other token makes a new prefix, after all there were.

        Returns:
            The token that each prefix ends with, [U] of now, and the prefixes that the new ones came from.
        """
        key_K, of_M = (self.of_M << TOKEN | token_M).unique(return_inverse=True)
        from_K, token_K = key_K >> TOKEN, key_K & (1 << TOKEN) - 1
        is_new_K = from_K.diff(prepend=from_K.new_tensor([-1])) == 0
        prefix_K = torch.where(is_new_K, self.count - 1 + is_new_K.cumsum(0), from_K)
        self.of_M, self.count = prefix_K[of_M], len(key_K)
        return torch.empty_like(token_K).index_copy_(0, prefix_K, token_K), from_K[is_new_K]

    def keep(self, index_M: Tensor) -> Tensor:
        """Go on with these rows alone, in this order; returns the prefixes that are left, which are numbered anew."""
        left_U, self.of_M = self.of_M[index_M].unique(return_inverse=True)
        self.count = len(left_U)
        return left_U

    def rows(self) -> tuple[Tensor, Tensor]:
        """The rows [M] sorted by prefix, and where each prefix's begin and the last one's end, [U + 1]."""
        begin = torch.zeros(self.count + 1, dtype=torch.long)
        torch.cumsum(self.of_M.bincount(minlength=self.count), 0, out=begin[1:])
        return self.of_M.argsort(stable=True), begin
