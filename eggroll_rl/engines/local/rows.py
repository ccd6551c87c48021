"""The answers of one batch while they are made; each row knows whether it has ended.

Legend: M rows of a batch, T tokens.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

COMPACT_BELOW = 0.8  # share of unfinished rows below which the finished ones leave the batch


class Rows:
    """The rows of a batch, finished ones included until they leave.

    Args:
        member: whose each row is.
        prompt: which prompt it answers.
        encoded: the tokens of all prompts.
        pad: the token that stands before shorter prompts.
        length: most tokens of an answer.

    Attributes:
        next_MT: what the model reads next, at first the left-padded prompts.
        position: tokens made so far, in rows that go on.
    """

    def __init__(
        self,
        member: Sequence[int],
        prompt: Sequence[int],
        encoded: Sequence[Sequence[int]],
        pad: int,
        length: int,
        device: torch.device,
    ):
        self.member, self.prompt, self.position = list(member), list(prompt), 0
        asked = {index: place for place, index in enumerate(dict.fromkeys(self.prompt))}  # prompt -> its place
        self.longest = max(len(encoded[index]) for index in asked)
        pads = [self.longest - len(encoded[index]) for index in asked]
        padded = [[pad] * short + list(encoded[index]) for short, index in zip(pads, asked, strict=True)]
        mask = [[0] * short + [1] * (self.longest - short) for short in pads]
        asked_M = torch.tensor([asked[index] for index in self.prompt], device=device)
        self.next_MT = torch.tensor(padded, device=device)[asked_M]
        self.prompt_M = torch.tensor(self.prompt, device=device)
        self._mask_MT = torch.ones(len(self), self.longest + length, dtype=torch.long, device=device)
        self._mask_MT[:, : self.longest] = torch.tensor(mask, device=device)[asked_M]
        # prompt and answer; in place of padding, the last token of the prompt once more
        self._token_MT = self.next_MT[:, -1:].repeat(1, self.longest + length)
        self._token_MT[:, : self.longest] = torch.where(self.mask_MT > 0, self.next_MT, self.next_MT[:, -1:])
        self._has_ended_M = torch.zeros(len(self), dtype=torch.bool, device=device)
        self._length_M = torch.zeros(len(self), dtype=torch.long, device=device)

    def __len__(self) -> int:
        return len(self.member)

    @property
    def capacity(self) -> int:
        """Tokens of a row, prompt and answer, at most."""
        return self._mask_MT.shape[1]

    @property
    def mask_MT(self) -> Tensor:
        """Which tokens the model sees once it has read ``next_MT``: 1, or 0 for padding."""
        return self._mask_MT[:, : self.longest + self.position]

    @property
    def made_MT(self) -> Tensor:
        """The tokens made so far."""
        return self._token_MT[:, self.longest : self.longest + self.position]

    @property
    def seen_MT(self) -> Tensor:
        """The tokens of prompts and answers so far; which, not in which place."""
        return self._token_MT[:, : self.longest + self.position]

    def take(self, token_M: Tensor) -> None:
        """Add one token to each row; a finished row's token is no part of its answer."""
        self._token_MT[:, self.longest + self.position] = token_M
        self.position += 1
        self._length_M += ~self._has_ended_M
        self.next_MT = token_M[:, None]

    def end(self, has_ended_M: Tensor) -> None:
        """Mark the rows that have ended; all have where there is no room for more tokens."""
        self._has_ended_M |= has_ended_M
        if self.longest + self.position == self.capacity:
            self._has_ended_M[:] = True

    def are_few(self) -> bool:
        """Whether so many have ended that it is worth going on without them."""
        return bool(self._has_ended_M.float().mean() > 1 - COMPACT_BELOW)

    def leave(self) -> tuple[list[tuple[int, int, list[int]]], Tensor]:
        """Let finished rows go.

        Returns:
            Their members, prompts and tokens, and the indices of those that stay.
        """
        ended, staying_M = self._has_ended_M.nonzero()[:, 0], (~self._has_ended_M).nonzero()[:, 0]
        made, lengths = self.made_MT[ended].tolist(), self._length_M[ended].tolist()
        gone = [
            (self.member[row], self.prompt[row], tokens[:length])
            for row, tokens, length in zip(ended.tolist(), made, lengths, strict=True)
        ]
        stays = staying_M.tolist()
        self.member, self.prompt = [self.member[row] for row in stays], [self.prompt[row] for row in stays]
        self.next_MT, self.prompt_M = self.next_MT[staying_M], self.prompt_M[staying_M]
        self._mask_MT, self._token_MT = self._mask_MT[staying_M], self._token_MT[staying_M]
        self._has_ended_M, self._length_M = self._has_ended_M[staying_M], self._length_M[staying_M]
        return gone, staying_M


def batches(
    lengths: Sequence[int], members: range, pads: bool, most_rows: Callable[[int], int]
) -> Iterator[tuple[list[int], list[int]]]:
    """The members and prompts of the rows of each batch, member-major: as many whole members as fit, or parts of
    members where not even one does.

    Args:
        lengths: tokens of each prompt.
        members: who answers all of them.
        pads: whether prompts of different lengths may be in one batch.
        most_rows: of a batch whose longest prompt has so many tokens.
    """
    groups = (
        [range(len(lengths))]
        if pads
        else [[index for index, own in enumerate(lengths) if own == length] for length in sorted(set(lengths))]
    )
    for group in groups:
        limit = most_rows(max(lengths[index] for index in group))
        size = limit // len(group) * len(group) or limit
        for first in range(0, len(members) * len(group), size):
            rows = range(first, min(first + size, len(members) * len(group)))
            yield [members[row // len(group)] for row in rows], [group[row % len(group)] for row in rows]
