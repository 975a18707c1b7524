"""What of a prediction is masked, and which band of the scene tells where it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

MaskKind = Literal["cloud", "snow_ice"]
Encoding = Literal["sentinel2_scl", "hls_fmask"]

NODATA = 65535  # of a class map in which something is masked


class MaskedClass(NamedTuple):
    """What masked pixels of a class map are: GEOStudio's values and colours."""

    value: int
    name: str
    colour: str


MASKED_CLASSES: Mapping[MaskKind, MaskedClass] = {
    "snow_ice": MaskedClass(998, "Snow and ice", "#fffafa"),
    "cloud": MaskedClass(999, "Clouds", "#cccccc"),
}


class Masking(BaseModel):
    """Kinds of pixels that are masked by a classification band of the scene itself.

    The band is found by its name, in any case; in a scene whose bands have no names by ``index``
    (from 0).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    band: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00]*$")]
    index: Annotated[int, Field(ge=0, le=1000)] | None = None
    encoding: Encoding
    kinds: Annotated[tuple[MaskKind, ...], Field(min_length=1, max_length=2)]
