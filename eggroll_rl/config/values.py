"""The values of a recipe: paths, and numbers in the bounds beyond which they overflow or a run never ends."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
)
from pydantic_core.core_schema import CoreSchema, no_info_after_validator_function

from eggroll_rl.system.paths import expanded


@dataclass(frozen=True)
class AtLeast:
    """Refuses positive numbers below ``least``, which vanish in single precision; 0 is left to other bounds."""

    least: float

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return handler(schema) | {"minimumAboveZero": self.least}

    def _check(self, value: float) -> float:
        if 0 < value < self.least:
            raise ValueError(f"{value} is as good as 0: take at least {self.least}")
        return value


# A path or a name, in which ``~`` and variables of the environment stand for what they do in a shell.
PathText = Annotated[str, AfterValidator(expanded)]
PathValue = Annotated[Path, BeforeValidator(lambda path: expanded(str(path)) if isinstance(path, str | Path) else path)]
# Beyond these bounds numbers overflow somewhere, or a run never ends.
Count = Annotated[int, Field(ge=1, lt=2**31)]
CountOrZero = Annotated[int, Field(ge=0, lt=2**31)]
Processes = Annotated[int, Field(ge=1, le=4096)]
Rank = Annotated[int, Field(ge=1, le=4096)]
Seconds = Annotated[float, Field(gt=0, le=1e7), AtLeast(1e-3)]
GiB = Annotated[float, Field(gt=0, le=2.0**20), AtLeast(1e-3)]
Rate = Annotated[float, Field(gt=0, le=1e3), AtLeast(1e-15)]
Decay = Annotated[float, Field(ge=0, le=10)]
Temperature = Annotated[float, Field(ge=0, le=100), AtLeast(1e-3)]
Seed = Annotated[int, Field(ge=0, lt=2**64)]


class Section(BaseModel):
    """A part of a recipe. Unknown keys are refused, values never change; the text below a key is its description."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)
