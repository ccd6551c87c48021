"""Where the prompts come from."""

from typing import Any

from pydantic import Field, field_validator

from eggroll_rl.config.values import PathText, Section

CHAT_METHOD = {  # arguments of ``apply_chat_template`` itself, which are not for the template
    *("conversation", "add_generation_prompt", "continue_final_message", "tokenize", "sanitize_control_tokens"),
    *("padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask"),
    *("tokenizer_kwargs", "messages", "chat_template"),
}


class DataConfig(Section):
    """Where the prompts come from. A field within a column is named ``column.field``, here and in a template."""

    name: PathText = "countdown"
    """``countdown`` or ``reasoning-gym:TASK`` (generators), a task that another package brings, a Hugging Face
    dataset (name or folder), or a file (JSONL, JSON, CSV or Parquet) or folder of such."""
    prompts: int = Field(8, ge=1, le=2**20)
    """Prompts of a generation; each member answers all of them."""
    prompt: str | list[dict[str, str]] | None = None
    """A template over the row's columns, as in ``{question}``, or a list of chat messages with such templates; null:
    the column ``prompt``."""
    system: str | None = None
    """A template of the system message that precedes the prompt; a prompt of text then becomes the user's message."""
    chat_template: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the model's chat template, such as ``{enable_thinking: false}``."""
    group: str | None = None
    """Rows with the same value of this column ask the same, and stay on one side of a split; null: by their prompt."""
    subset: str | None = None
    """The configuration (subset) of a Hugging Face dataset."""
    split: str = "train"
    """The split of a Hugging Face dataset that is trained on."""
    test_name: PathText | None = None
    """Where the held-out examples are, if elsewhere; null: one question in ten of a file, or of a
    folder with one split, is held out."""
    test_split: str = "test"
    """The split of a Hugging Face dataset that is held out."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Renames: ``{new: old}``. Every column reaches the rewards by name."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the generator."""
    # the Countdown generator
    numbers: tuple[int, ...] = (3,)
    """Countdown: how many numbers a problem has; of several counts, each problem draws one."""
    low: int = Field(1, ge=1, le=10**9)
    """Countdown: the smallest number."""
    high: int = Field(15, ge=1, le=10**9)
    """Countdown: the largest number."""
    target_low: int = Field(1, ge=-(10**12), le=10**12)
    """Countdown: the smallest target."""
    target_high: int = Field(100, ge=-(10**12), le=10**12)
    """Countdown: the largest target."""
    negative: bool = False
    """Countdown: whether a target may be below 0."""
    fractional: bool = False
    """Countdown: whether a target may be a fraction."""

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
