"""Prompt templates: plain substitution of columns, in text or in chat messages.

No attribute, index or format code of ``str.format`` is ever evaluated.
"""

import reprlib
import string
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

from eggroll_rl.system.errors import UsageError

if TYPE_CHECKING:
    from eggroll_rl.es.rollout import Prompt


class Template:
    """``data.prompt`` and ``data.system``, compiled: called with a row, it returns the prompt.

    Without ``data.prompt`` the prompt is the column ``prompt``. A text or message that names one column and nothing
    else becomes the chat messages that this column holds. Literal braces are written ``{{`` and ``}}``; braces in the
    values stay as they are.

    Attributes:
        fields: the columns that it needs, each with the recipe's key that names it.
    """

    def __init__(self, prompt: str | list[dict[str, str]] | None, system: str | None = None):
        self.prompt, self.system = prompt, None if system is None else parse(system, "data.system")
        text = "{prompt}" if prompt is None else prompt
        messages = text if isinstance(text, list) else [{"role": "", "content": text}]
        if isinstance(prompt, list) and not is_chat(messages):
            raise UsageError(f"data.prompt={prompt!r}: a chat is a list of messages, each with a role and a content")
        self.messages = [(message, parse(message["content"])) for message in messages]
        named = [(name, "data.system") for _, name in self.system or ()]
        named += [(name, "data.prompt") for _, parts in self.messages for _, name in parts]
        self.fields = {name: key for name, key in named if name is not None}

    def __call__(self, row: Mapping[str, Any]) -> "Prompt":
        absent = [field for field in self.fields if value_of(row, field) is None]
        if absent:
            raise UsageError(f"column {absent[0]!r} has no value in the row {reprlib.repr(row)}; complete or remove it")
        if self.prompt is None and not isinstance(row["prompt"], str) and not is_chat(row["prompt"]):
            raise UsageError(
                f"the prompt {reprlib.repr(row['prompt'])} is neither text nor chat messages; set data.prompt"
            )
        chat: list[dict[str, str]] = []
        for message, parts in self.messages:
            alone = value_of(row, parts[0][1] or "") if len(parts) == 1 and not parts[0][0] else None
            chat += alone if is_chat(alone) else [{**message, "content": fill(parts, row)}]
        is_text = not isinstance(self.prompt, list) and chat[0]["role"] == ""
        if self.system is None:
            return encodable(chat[0]["content"] if is_text else chat)
        if chat[0]["role"] == "system":
            raise UsageError("the prompt has a system message already: drop data.system, or that message")
        opening = {"role": "system", "content": fill(self.system, row, "data.system")}
        return encodable([opening, *([{**chat[0], "role": "user"}] if is_text else chat)])


def parse(text: str, key: str = "data.prompt") -> list[tuple[str, str | None]]:
    """A template as pairs of literal text and the name of the column that follows it."""
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as error:
        raise UsageError(f"{key}: {error}; write {{{{ and }}}} for literal braces") from error
    for _, name, code, conversion in parts:
        if name == "" or code or conversion:
            raise UsageError(
                f"{key}: {{{name or ''}}} must hold a column's name and nothing else in {reprlib.repr(text)}; "
                "write {{ and }} for literal braces"
            )
    return [(literal, name) for literal, name, _, _ in parts]


def fill(parts: list[tuple[str, str | None]], row: Mapping[str, Any], key: str = "data.prompt") -> str:
    for _, name in parts:
        if name is not None and is_chat(value_of(row, name)):
            raise UsageError(f"column {name!r} holds a chat, and {key} puts it into a text: name it alone")
    return "".join(literal + ("" if name is None else str(value_of(row, name))) for literal, name in parts)


def value_of(row: Mapping[str, Any], name: str) -> Any:
    """The value of the column ``name``, or with dots of a field within a column (``reward_model.ground_truth``,
    ``answers.0``); None if there is none."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def encodable(prompt: "Prompt") -> "Prompt":
    """The prompt itself.

    Raises:
        UsageError: it holds half a character (a lone surrogate, as JSON can write it), which UTF-8 cannot encode.
    """
    for text in [prompt] if isinstance(prompt, str) else [part for message in prompt for part in message.values()]:
        try:
            str(text).encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"the prompt {reprlib.repr(prompt)} holds half a character, {error.object[error.start]!r}: it was cut "
                "within one; mend or remove the row"
            ) from error
    return prompt


def is_chat(value: Any) -> TypeGuard[list[dict[str, str]]]:
    """Whether ``value`` is a non-empty list of messages with a role and a content, both text."""
    if not isinstance(value, list) or not value:
        return False
    return all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in value
    )
