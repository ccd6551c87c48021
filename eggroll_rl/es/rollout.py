"""What an engine is asked and what it answers."""

from typing import NamedTuple

from torch import Tensor

Prompt = str | list[dict[str, str]]  # plain text, or chat messages


class Completion(NamedTuple):
    """One answer: its text without special end tokens, its token ids, and whether it ended by itself."""

    text: str
    token_ids: tuple[int, ...]
    finished: bool


class Saturation(NamedTuple):
    """Shares of integers that are as large as they can be: of each parameter's weights, and of each matrix's products,
    by the parameter's name."""

    weights: dict[str, float]
    products: dict[str, float]


class Foretold(NamedTuple):
    """What rows, each a member's or the model's own, made of text: log-likelihood of the bytes that they foretold, in
    bits, float64 [rows]; and the state in which they read on, [rows, ...]."""

    bits: Tensor
    state: Tensor
