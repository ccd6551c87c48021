"""Text that a model learns to foretell."""

from pydantic import Field, field_validator

from eggroll_rl.config.values import Count, PathText, Section


class TextConfig(Section):
    """Text that a model learns to foretell, byte by byte."""

    name: PathText = "python-docs"
    """``python-docs`` (the language reference that every Python carries), a text file, a folder of text files, or a
    Hugging Face dataset."""
    column: str = "text"
    """The column of a dataset that holds the text."""
    subset: str | None = None
    """The configuration (subset) of a Hugging Face dataset."""
    split: str = "train"
    """The split of a dataset that is learned from."""
    test_split: str | None = None
    """The split of a dataset that is held out; null: the last tenth of ``split``, as for other text."""
    group: int = Field(2, ge=2, lt=2**31)
    """How many members, an even number, read the same stream."""
    tokens: int = Field(100, ge=1, le=2**20)
    """Bytes of each stream that are read in a generation."""
    sample: Count = 200
    """Bytes of text that the model generates at each evaluation, for people to read."""

    @field_validator("group")
    @classmethod
    def _pairs_are_whole(cls, group: int) -> int:
        if group % 2:
            raise ValueError(f"{group} is odd, and the two members of a pair read the same: take {group + 1}")
        return group
