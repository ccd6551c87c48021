"""What most of several answers to a problem say: their majority vote."""

import re
from collections import Counter
from collections.abc import Sequence

SAYS = re.compile(r"<answer>(.*?)</answer>|\\boxed\{([^{}]*)\}|####([^\n]*)", re.DOTALL)


def elected(texts: Sequence[str]) -> int:
    """The index of the first of at least one answer that says what most of them say.

    What an answer says stands in its last ``<answer>``, ``\\boxed`` or ``####``, white space apart; one without any of
    these has no vote. If no answer has one of them, each says its whole text. Of equal counts the earlier wins.
    """
    said = [_said(text) for text in texts]
    if not any(said):
        said = ["".join(text.split()) for text in texts]
    votes = Counter(filter(None, said))
    return said.index(max(votes, key=votes.__getitem__)) if votes else 0


def _said(text: str) -> str:
    found = SAYS.findall(text)
    return "".join("".join(found[-1]).split()) if found else ""
