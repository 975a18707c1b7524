"""How a client may wish a layer of a processor's files to look; ``publish.styles`` as input."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

_MOST = 256
Colour = Annotated[str, Field(pattern="^#[0-9A-Fa-f]{6}$")]
Label = Annotated[str, Field(max_length=200)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ClassEntry(_Strict):
    """One value and how it is drawn."""

    value: int
    name: Label
    colour: Colour
    opacity: float = Field(default=1.0, ge=0, le=1)


class ClassStyle(_Strict):
    """One colour for each value."""

    kind: Literal["classes"]
    nodata: float = 255
    classes: tuple[ClassEntry, ...] = Field(min_length=1, max_length=_MOST)


class RampStop(_Strict):
    """A value's colour; those between are interpolated."""

    value: float
    colour: Colour
    label: Label = ""


class RampStyle(_Strict):
    """Colours that run from value to value."""

    kind: Literal["ramp"]
    nodata: float = -9999.0
    unit: Label = ""
    stops: tuple[RampStop, ...] = Field(min_length=2, max_length=_MOST)

    @model_validator(mode="after")
    def _rising(self) -> Self:
        values = [stop.value for stop in self.stops]
        if sorted(set(values)) != values:
            raise ValueError("has stops that do not rise")
        return self


class RgbStyle(_Strict):
    """Three bands as a colour picture."""

    kind: Literal["rgb"]
    channels: tuple[int, int, int] = (1, 2, 3)
    minimum: float = 0
    maximum: float = 255


Style = Annotated[ClassStyle | RampStyle | RgbStyle, Field(discriminator="kind")]
