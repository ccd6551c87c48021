"""What an engine is asked and what it answers."""

from typing import NamedTuple

Prompt = str | list[dict[str, str]]  # plain text, or chat messages


class Completion(NamedTuple):
    """One answer: its text without special end tokens, its token ids, and whether it ended by itself."""

    text: str
    token_ids: tuple[int, ...]
    finished: bool
