"""The values of a recipe: paths, and numbers in the bounds beyond which they overflow or a run never ends."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from eggroll_rl.system.paths import expanded


def at_least(least: float) -> AfterValidator:
    """Refuses what single precision takes for nothing; 0 itself is another rule's."""

    def check(value: float) -> float:
        if 0 < value < least:
            raise ValueError(f"{value} is as good as 0: take at least {least}")
        return value

    return AfterValidator(check)


# A path or a name, in which ``~`` and variables of the environment stand for what they do in a shell.
PathText = Annotated[str, AfterValidator(expanded)]
PathValue = Annotated[Path, BeforeValidator(lambda path: expanded(str(path)) if isinstance(path, str | Path) else path)]
# Beyond these bounds numbers overflow somewhere, or a run never ends.
Count = Annotated[int, Field(ge=1, lt=2**31)]
Turn = Annotated[int, Field(ge=0, lt=2**31)]
Processes = Annotated[int, Field(ge=1, le=4096)]
Rank = Annotated[int, Field(ge=1, le=4096)]
Seconds = Annotated[float, Field(gt=0, le=1e7), at_least(1e-3)]
GiB = Annotated[float, Field(gt=0, le=2.0**20), at_least(1e-3)]
Rate = Annotated[float, Field(gt=0, le=1e3), at_least(1e-15)]
Decay = Annotated[float, Field(ge=0, le=10)]
Temperature = Annotated[float, Field(ge=0, le=100), at_least(1e-3)]
Seed = Annotated[int, Field(ge=0, lt=2**64)]


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused and values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
