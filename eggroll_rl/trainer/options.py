"""What an option of ``EggrollConfig`` is: one that sets keys of the recipe, one of the trainer's own, or one of GRPO's
that changes nothing here or has no meaning here."""

import dataclasses
from collections.abc import Iterator
from enum import StrEnum
from typing import Any, NamedTuple

JOINT = ": "  # between what becomes of an option and the keys or the reason, in its help


class Kind(StrEnum):
    """What becomes of an option."""

    KEY = "sets"  # keys of the recipe
    OWN = "is the trainer's own"
    IDLE = "changes nothing"
    REFUSED = "is refused"


class Option(NamedTuple):
    """An option, its default, what becomes of it, and for people: the keys that it sets, or what it does, or why it
    does nothing."""

    name: str
    default: Any
    kind: Kind
    says: str


def sets(default: Any, *keys: str) -> Any:
    """A field that sets these keys of the recipe."""
    return _field(default, Kind.KEY, ", ".join(keys))


def own(default: Any, says: str) -> Any:
    """A field that the trainer itself reads."""
    return _field(default, Kind.OWN, says)


def idle(default: Any, why: str) -> Any:
    """A field that every value of is right, because there is nothing that it could change; why so."""
    return _field(default, Kind.IDLE, why)


def refused(default: Any, why: str) -> Any:
    """A field that has no meaning beside its default; why so."""
    return _field(default, Kind.REFUSED, why)


def _field(default: Any, kind: Kind, says: str) -> Any:
    metadata = {"help": f"{kind}{JOINT}{says}"}  # the one key that argument parsers of transformers know
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def options(config: Any) -> Iterator[Option]:
    """All options of a configuration or of its class, in their order; what a derived class adds is its own."""
    for field in dataclasses.fields(config):
        missing = field.default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING
        default = field.default_factory() if missing else field.default  # type: ignore[operator]
        kind, _, says = field.metadata.get("help", "").partition(JOINT)
        known = kind in set(Kind)  # else it is a field that a script's own class has added
        yield Option(field.name, default, Kind(kind) if known else Kind.OWN, says)


def changed(config: Any) -> Iterator[tuple[Option, Any]]:
    """The options that have another value than their default, and that value."""
    for option in options(config):
        value = getattr(config, option.name)
        if value != option.default:
            yield option, value
