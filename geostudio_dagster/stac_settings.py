"""How a data source is searched: what an administrator says of a STAC API and its collection."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
# Bands of codes whatever is told of them: of Sentinel-2, HLS and Landsat.
_CODES = frozenset({"scl", "fmask", "qa", "qa_pixel", "qa_radsat", "qa_aerosol"})
Finite = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class AssetBand:
    """Where a band's pixels are: the asset's key in an item, and the band in its file, from 1."""

    asset: str
    band: int = 1


class StacSearch(BaseModel):
    """A collection behind a STAC API, and what its items mean."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["stac"]
    url: Annotated[str, Field(max_length=2048, pattern=r"^https?://")] = Field(
        description="The API's landing page; its item search is below it, at /search."
    )
    collection: Text = Field(description="The collection's id there.")
    assets: dict[Text, Text] = Field(
        default_factory=dict,
        max_length=200,
        description="Assets by band, such as red, or image#2 for its second band; a band that is "
        "not named is the asset of its own name.",
    )
    classes: tuple[Text, ...] = Field(
        default=(), description="Bands whose values are codes, which are never interpolated."
    )
    cloud_cover: Text | None = Field(
        default="eo:cloud_cover", description="Property that tells an item's clouds, percent."
    )
    query: dict[str, Any] = Field(
        default_factory=dict, description="Conditions of the API's query extension."
    )
    values: Literal["numbers", "physical"] = Field(
        default="numbers",
        description="What models get: the stored numbers without an item's offset, or what scale "
        "and offset of the item make of them, as float32.",
    )
    offset: Literal["item", "none"] = Field(
        default="item", description="none: the pixels have no offset, whatever items say."
    )
    nodata: Finite | None = Field(
        default=None, description="Where neither items nor files tell what stands for no data."
    )
    origin_m: tuple[Finite, Finite] = Field(
        default=(0.0, 0.0), description="A corner of the pixels' grid: (15, 15) for Landsat."
    )
    stretch: tuple[Finite, Finite] | None = Field(
        default=None, description="Numbers that are black and white on the map of the input."
    )


class StacSource(BaseModel):
    """A data source that requests for areas are served from.

    Bands and resolution may be left out for a connector and collection that the package knows.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    connector: Annotated[str, Field(max_length=100, pattern=r"^[A-Za-z0-9][\w.-]*$")]
    collection_name: Text
    bands: tuple[dict[str, Any], ...] = ()
    resolution_m: Annotated[float, Field(gt=0, le=100_000, allow_inf_nan=False)] | None = None
    modality_tag: str | None = None
    rgb_bands: tuple[str, ...] | None = None
    cloud_masking: dict[str, Any] | None = None
    search: StacSearch

    @property
    def label(self) -> str:
        """How messages name it."""
        return f"{self.connector} {self.collection_name}"

    @property
    def band_names(self) -> tuple[str, ...]:
        """Names of its bands, in order."""
        own = [str(band["band_name"]) for band in self.bands if "band_name" in band]
        return tuple(dict.fromkeys([*own, *self.search.assets]))

    def asset_of(self, name: str) -> AssetBand | None:
        """Where the pixels of a band are, by its name or another name of it, in any case."""
        told = {key.lower(): value for key, value in self.search.assets.items()}
        for names in self._named(name.strip().lower()):
            for one in names:
                if one.lower() in told:
                    return _parsed(told[one.lower()])
            return AssetBand(names[0])
        asset = told.get(name.strip().lower())
        return None if asset is None else _parsed(asset)

    def is_class(self, name: str) -> bool:
        """Whether a band holds codes, which are never interpolated."""
        masks = str((self.cloud_masking or {}).get("band", ""))
        codes = _CODES | {one.lower() for one in (*self.search.classes, masks) if one}
        wanted = name.strip().lower()
        return any(one.lower() in codes for names in self._named(wanted) for one in names) or (
            wanted in codes
        )

    def _named(self, wanted: str) -> Iterator[list[str]]:
        """All names of the band that one of them is of, the own first."""
        for band in self.bands:
            names = [str(one) for one in (band.get("band_name"), *_others(band)) if one]
            if wanted in {one.strip().lower() for one in names}:
                yield names
                return


def _others(band: Mapping[str, Any]) -> list[Any]:
    others = band.get("alt_names")
    return others if isinstance(others, list) else []


def _parsed(text: str) -> AssetBand:
    asset, _, number = text.rpartition("#")
    if asset and number.isdecimal() and 0 < int(number) <= 1000:  # noqa: PLR2004 - bands
        return AssetBand(asset, int(number))
    return AssetBand(text)
