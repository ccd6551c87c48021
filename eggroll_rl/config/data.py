"""Where the prompts come from."""

from typing import Any

from pydantic import Field, field_validator

from eggroll_rl.config.values import PathText, Section

CHAT_METHOD = {  # arguments of ``apply_chat_template`` that are not the template's
    *("conversation", "add_generation_prompt", "continue_final_message", "tokenize", "sanitize_control_tokens"),
    *("padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask"),
    *("tokenizer_kwargs", "messages", "chat_template"),
}


class DataConfig(Section):
    """Where the prompts come from.

    ``name`` is ``countdown`` or ``reasoning-gym:TASK`` (generators; ``options`` are those of the task), a task that
    another package brings, a Hugging Face dataset (name or folder), or a local file (JSONL, JSON, CSV or Parquet).
    ``prompt`` is a template over the row's columns (``"{question}\\n"``) or a list of chat messages with such
    templates; None takes the column ``prompt`` (the generator writes it). ``chat_template`` are arguments of the
    model's chat template, such as ``{enable_thinking: false}``. ``columns`` renames, ``{new: old}``; every column
    reaches the rewards by name. A field of a column is named ``column.field``, there and in a template.

    ``test_name`` is where the held-out examples are, if elsewhere. Of a file without, one question in ten is held out:
    rows that ask the same are on one side. They ask the same where the prompt is the same, or the column ``group``.
    """

    name: PathText = "countdown"
    prompts: int = Field(8, ge=1, le=2**20)
    prompt: str | list[dict[str, str]] | None = None
    chat_template: dict[str, Any] = Field(default_factory=dict)
    group: str | None = None
    subset: str | None = None
    split: str = "train"
    test_name: PathText | None = None
    test_split: str = "test"
    columns: dict[str, str] = Field(default_factory=dict)
    options: dict[str, Any] = Field(default_factory=dict)
    # the Countdown generator
    numbers: tuple[int, ...] = (3,)
    low: int = Field(1, ge=1, le=10**9)
    high: int = Field(15, ge=1, le=10**9)
    target_low: int = Field(1, ge=-(10**12), le=10**12)
    target_high: int = Field(100, ge=-(10**12), le=10**12)
    negative: bool = False
    fractional: bool = False

    @field_validator("numbers", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, int) else value

    @field_validator("chat_template")
    @classmethod
    def _for_the_template(cls, options: dict[str, Any]) -> dict[str, Any]:
        ours = sorted(CHAT_METHOD.intersection(options))
        if ours:
            raise ValueError(
                f"{ours[0]!r} is no argument of a template: how a chat is encoded follows from its messages"
            )
        return options
