"""What makes the next token's logits for all rows of a batch.

Legend: M rows of a batch, T tokens, V vocabulary.
"""

from typing import Protocol

from torch import Tensor

from eggroll_rl.es.perturbation import Members


class Decoder(Protocol):
    """One way to run a model; it holds what the model keeps of the rows from token to token."""

    @property
    def description(self) -> str:
        """In which way a token is made, in words."""
        ...

    @property
    def pads(self) -> bool:
        """Whether prompts of different lengths may be in one batch."""
        ...

    @property
    def is_fixed(self) -> bool:
        """Whether noise must stay where it is from step to step, and be that of equally many pairs."""
        ...

    @property
    def wants_pairs(self) -> bool:
        """Whether ``members`` come with the pair of each row."""
        ...

    def begin(self, rows: int, tokens: int) -> None:
        """Get ready for the prompts of ``rows`` rows of at most so many tokens, answers included."""
        ...

    def step(self, token_MT: Tensor, mask_MT: Tensor, members: Members | None) -> Tensor:
        """Logits [M, V] after one more token of each row, or first after the prompts; the next step overwrites them.

        Args:
            token_MT: left-padded prompts, afterwards the last tokens [M, 1].
            mask_MT: of all tokens so far, the prompts' included; 0 on padding.
            members: whose rows these are; None: the unperturbed model's.
        """
        ...

    def keep(self, index_M: Tensor) -> None:
        """Go on with these rows alone, in this order."""
        ...

    def weights_changed(self) -> None:
        """Forget what was computed from the model's weights: they have changed."""
        ...

    def nbytes(self) -> int:
        """Bytes that it keeps from one batch to the next."""
        ...

    def close(self) -> None:
        """Give back all memory."""
        ...
