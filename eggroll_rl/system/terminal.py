"""Texts that a model wrote, on a terminal."""

OBEYED = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def harmless(text: str) -> str:
    """The text with a mark in place of each character that a terminal would obey."""
    return text.translate(OBEYED)
