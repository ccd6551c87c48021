"""What most of several answers to a problem say: their majority vote."""

from collections import Counter
from collections.abc import Sequence


def elected(texts: Sequence[str]) -> int:
    """The index of the first of at least one answer that says what most of them say.

    What an answer says stands in its last ``<answer>``, else in its last ``\\boxed``, else after its last ``####``,
    white space apart; one without any of these has no vote. If no answer has one of them, each says its whole text. Of
    equal counts the earlier wins.
    """
    said = [_said(text) for text in texts]
    if not any(said):
        said = ["".join(text.split()) for text in texts]
    votes = Counter(filter(None, said))
    return said.index(max(votes, key=votes.__getitem__)) if votes else 0


def _said(text: str) -> str:
    said = _tagged(text)
    if said is None:
        said = _boxed(text)
    if said is None:
        said = text.rpartition("####")[2].partition("\n")[0] if "####" in text else ""
    return "".join(said.split())


def _tagged(text: str) -> str | None:
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    return text[start + len("<answer>") : end] if start >= 0 else None


def _boxed(text: str) -> str | None:
    start, depth = text.rfind("\\boxed{"), 0
    for index in range(start + len("\\boxed"), len(text)) if start >= 0 else ():
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return text[start + len("\\boxed{") : index]
    return None
