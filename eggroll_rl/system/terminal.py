"""Safe output of model-written text on a terminal."""

OBEYED = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def harmless(text: str) -> str:
    """The text with U+FFFD in place of each control character, which a terminal would obey."""
    return text.translate(OBEYED)
