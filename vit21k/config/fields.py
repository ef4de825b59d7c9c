"""What the sections of a recipe are made of: kinds of values, and their base class."""

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, Strict

# Strict: `on`, `yes` and quoted numbers are not numbers.
Integer = Annotated[int, Strict()]
Number = Annotated[float, Strict()]
Flag = Annotated[bool, Strict()]
PositiveInt = Annotated[Integer, Field(gt=0)]
NonNegativeInt = Annotated[Integer, Field(ge=0)]
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Multiplier = NonNegative
Percent = Annotated[Number, Field(ge=0, lt=100)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
DropRate = Annotated[Number, Field(ge=0, lt=1)]
Beta = Annotated[Number, Field(ge=0, lt=1)]
Interpolation = Literal["bicubic", "bilinear"]


class Section(BaseModel):
    """Base of every section: frozen, and a misspelt key is an error, not a silent default."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


_S = TypeVar("_S", bound=Section)


def all_well(section: _S, problems: list[str]) -> _S:
    """Return *section*, or refuse it with everything that is wrong with it."""
    if problems:
        raise ValueError("\n".join(problems))
    return section


def shown(value: float | None) -> str:
    """Return *value* as a recipe would have it."""
    return "null" if value is None else f"{value:g}"
