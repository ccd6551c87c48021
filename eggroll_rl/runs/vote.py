"""What most of several answers to a problem say: their majority vote."""

from collections import Counter
from collections.abc import Sequence

from eggroll_rl.rewards.text import answer_text, boxed_text


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
    tagged, (_, mark, rest) = answer_text(text), text.rpartition("####")
    said = tagged if tagged is not None else boxed_text(text)
    if said is None:
        said = rest.partition("\n")[0] if mark else ""
    return "".join(said.split())
