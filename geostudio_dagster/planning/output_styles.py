"""How a client may wish a layer of a processor's files to look; ``publish.styles`` as input."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

_MOST = 256
# What pixels can hold.
LEAST_CLASS, MOST_CLASS = -(2**31), 2**32 - 1
Colour = Annotated[str, Field(pattern="^#[0-9A-Fa-f]{6}$")]
Label = Annotated[str, Field(max_length=200)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ClassEntry(_Strict):
    """One value and how it is drawn."""

    value: int = Field(ge=LEAST_CLASS, le=MOST_CLASS)
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


Share = Annotated[float, Field(ge=0, le=1)]
Width = Annotated[float, Field(ge=0, le=100)]


class PointMark(_Strict):
    """How points are drawn; size and width in pixels."""

    shape: Literal["circle", "square", "triangle", "star", "cross", "x"] = "circle"
    fill: Colour = "#e4572e"
    fill_opacity: Share = 0.9
    stroke: Colour = "#ffffff"
    stroke_width: Width = 1.0
    stroke_opacity: Share = 1.0
    size: Annotated[float, Field(gt=0, le=200)] = 9.0


class LineMark(_Strict):
    """How lines are drawn; width in pixels."""

    stroke: Colour = "#e4572e"
    stroke_width: Width = 2.0
    stroke_opacity: Share = 1.0


class PolygonMark(_Strict):
    """How polygons are drawn; width in pixels."""

    fill: Colour = "#e4572e"
    fill_opacity: Share = 0.3
    stroke: Colour = "#a6330f"
    stroke_width: Width = 1.5
    stroke_opacity: Share = 1.0


class VectorStyle(_Strict):
    """Points, lines and polygons of one layer; what is left out is drawn as usual."""

    kind: Literal["vector"] = "vector"
    point: PointMark = PointMark()
    line: LineMark = LineMark()
    polygon: PolygonMark = PolygonMark()


Style = Annotated[ClassStyle | RampStyle | RgbStyle | VectorStyle, Field(discriminator="kind")]
