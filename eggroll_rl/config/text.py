"""Text that a model learns to foretell."""

from pydantic import Field, field_validator

from eggroll_rl.config.values import Count, PathText, Section


class TextConfig(Section):
    """Text that a model learns to foretell, byte by byte."""

    name: PathText = "python-docs"
    """``python-docs`` (the language reference that every Python carries), a text file, a folder of text files, or a
    Hugging Face dataset."""
    column: str = "text"
    """Of a dataset: the column with the text."""
    subset: str | None = None
    """Of a dataset."""
    split: str = "train"
    """Of a dataset: what is learned from."""
    test_split: str | None = None
    """Of a dataset: what is held out; null: the last tenth of ``split``, as of other text."""
    group: int = Field(2, ge=2, lt=2**31)
    """So many members, an even number, read the same stream."""
    tokens: int = Field(100, ge=1, le=2**20)
    """Bytes that each stream goes on by in a generation."""
    sample: Count = 200
    """Bytes that the model makes up where it is measured, for people to read."""

    @field_validator("group")
    @classmethod
    def _pairs_are_whole(cls, group: int) -> int:
        if group % 2:
            raise ValueError(f"{group} is odd, and the two members of a pair read the same: take {group + 1}")
        return group
