"""Replies of reward processes. User code may have written them: they are validated as data, never unpickled or run."""

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

LARGEST_REPLY = 2**16  # bytes of a reply, and for each row:
LARGEST_ROW = 2**14

Text = Annotated[str, StringConstraints(max_length=1024)]
Name = Annotated[str, StringConstraints(max_length=256)]
Form = TypeVar("Form", bound=BaseModel)
Number = Annotated[float, Field(allow_inf_nan=False)]


class Reply(BaseModel):
    """The reply to a call: either values, or the reason for none."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    token: str
    rewards: list[Number | Text | None] = []
    metrics: dict[Name, tuple[Number, Annotated[int, Field(ge=1, le=2**53)]]] = {}
    extras: dict[Name, list[bool | int | Number | Text | None]] = {}
    exception: Text | None = None
    shape: Text | None = None


class Function(BaseModel):
    """A reward function as its process found it."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    required: list[str]
    source: str


class Loaded(BaseModel):
    """The first reply of a process: its functions, or the reason for none."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    functions: list[Function] = []
    error: str | None = None


def parsed(reply: bytes, token: str, rows: int) -> Reply:
    """Validate the reply to the call with this token on so many rows.

    Raises:
        ValueError: it is no such reply.
    """
    checked = _parsed(Reply, reply)
    counts = {len(values) for values in (checked.rewards, *checked.extras.values())}
    if checked.token != token or (checked.exception is None and checked.shape is None and counts != {rows}):
        raise ValueError("an answer to another question")
    return checked


def parsed_start(reply: bytes, functions: int) -> Loaded:
    """Validate the first reply of a process that was to load so many functions.

    Raises:
        ValueError: it is no such reply.
    """
    loaded = _parsed(Loaded, reply)
    if loaded.error is None and len(loaded.functions) != functions:
        raise ValueError("other functions than were asked for")
    return loaded


def _parsed(form: type[Form], reply: bytes) -> Form:
    try:
        return form.model_validate_json(reply)
    except ValidationError as error:
        first: Any = error.errors(include_input=False, include_url=False)[0]
        raise ValueError(f"an answer that is none: {first['msg'][:200]}") from error
