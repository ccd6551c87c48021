"""Prompts and completions; and what comes back where a population reads text."""

from typing import NamedTuple

from torch import Tensor

Prompt = str | list[dict[str, str]]  # plain text, or chat messages


class Completion(NamedTuple):
    """One answer: its text without special end tokens, its token ids, and whether it ended by itself."""

    text: str
    token_ids: tuple[int, ...]
    finished: bool


class Saturation(NamedTuple):
    """Shares in [0, 1] of int8 values at -127 or 127, by the parameter's name.

    Attributes:
        weights: of each parameter's weights.
        products: of each matrix's products.
    """

    weights: dict[str, float]
    products: dict[str, float]


class Foretold(NamedTuple):
    """Text as members, or the unperturbed model, foretold it; one row for each reader.

    Attributes:
        bits: log2-likelihood of the bytes that a row foretold, summed, float64 [rows].
        state: the recurrent state from which it reads on, [rows, ...].
    """

    bits: Tensor
    state: Tensor
