"""Data sources that GEOStudio's clients know, with the names of their bands.

They are described so that clients can name bands as models expect them. Scenes are read by
address (connector ``url``); an area is searched for at those that an administrator says how to
search, see :mod:`planning.sources`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any
from uuid import UUID, uuid5

_NAMESPACE = UUID("6f5b1f5e-3f0c-5d6c-9a0e-2f4c0f6f7f10")
SERVED = "url"  # the connector that scenes are read by, given their addresses
_SENTINEL_2 = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09")
_S2_METRES = (60, 10, 10, 10, 20, 20, 20, 10, 20, 60)
_OWN_NAMES = ("coastal", "blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir")
_OTHER_NAMES = {
    **dict(zip(_OWN_NAMES, _SENTINEL_2, strict=False)),
    **{"nir08": "B8A", "nir09": "B09", "swir16": "B11", "swir22": "B12", "scl": "SCL"},
}
_SCL = {"band": "SCL", "encoding": "sentinel2_scl"}
_QA = {"band": "QA", "encoding": "hls_fmask"}
_FMASK = {"band": "Fmask", "encoding": "hls_fmask"}
_TRUE_COLOUR = ("B04", "B03", "B02")
_WORDS = ("Red", "Green", "Blue")


def _entry(
    connector: str,
    collection: str,
    tag: str | None,
    bands: Sequence[tuple[str, int]],
    *,
    rgb: Sequence[str] = (),
    cloud: dict[str, str] | None = None,
    resolution: int | None = None,
    others: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    colours = dict(zip(rgb, "RGB", strict=True)) if rgb else {}
    described = []
    for name, metres in bands:
        band: dict[str, Any] = {"band_name": name, "resolution": f"{metres}m"}
        if name in others:
            band["alt_names"] = [others[name]]
        described.append(band | ({"RGB_band": colours[name]} if name in colours else {}))
    return {
        "id": str(uuid5(_NAMESPACE, f"{connector}/{collection}")),
        "connector": connector,
        "collection_name": collection,
        "modality_tag": tag,
        "resolution_m": resolution,
        "bands": described,
        "rgb_bands": list(rgb) or None,
        "cloud_masking": cloud,
    }


def _at(metres: int, *names: str) -> list[tuple[str, int]]:
    return [(name, metres) for name in names]


_S2 = list(zip(_SENTINEL_2, _S2_METRES, strict=True))
_HLS_WORDS = ("CoastalAerosol", "Blue", "Green", "Red")

COLLECTIONS: tuple[dict[str, Any], ...] = (
    _entry(
        "sentinel_aws",
        "sentinel-2-l2a",
        "S2L2A",
        [
            *zip(_OWN_NAMES, _S2_METRES, strict=False),
            *_at(20, "nir08"),
            *_at(60, "nir09"),
            *_at(20, "swir16", "swir22", "scl"),
        ],
        rgb=("red", "green", "blue"),
        cloud=_SCL,
        resolution=10,
        others=_OTHER_NAMES,
    ),
    _entry(
        "sentinelhub",
        "s2_l2a",
        "S2L2A",
        [*_S2, *_at(20, "B11", "B12", "SCL", "SNW", "CLD")],
        rgb=_TRUE_COLOUR,
        cloud=_SCL,
        resolution=10,
    ),
    _entry(
        "sentinelhub",
        "s2_l1c",
        "S2L1C",
        [*_S2, *_at(60, "B10"), *_at(20, "B11", "B12")],
        rgb=_TRUE_COLOUR,
        resolution=10,
    ),
    _entry("sentinelhub", "s1_grd", "S1GRD", _at(10, "VV", "VH", "HV", "HH"), resolution=10),
    _entry("sentinelhub", "dem", "DEM", _at(30, "DEM"), resolution=30),
    _entry(
        "sentinelhub",
        "hls_l30",
        "HLS_L30",
        _at(
            30,
            *_HLS_WORDS,
            *("NIR_Narrow", "SWIR1", "SWIR2", "Cirrus"),
            *("ThermalInfrared1", "ThermalInfrared2", "QA"),
        ),
        rgb=_WORDS,
        cloud=_QA,
        resolution=30,
    ),
    _entry(
        "sentinelhub",
        "hls_s30",
        "HLS_S30",
        _at(
            30,
            *_HLS_WORDS,
            *("RedEdge1", "RedEdge2", "RedEdge3", "NIR_Broad", "NIR_Narrow"),
            *("WaterVapor", "Cirrus", "SWIR1", "SWIR2", "QA"),
        ),
        rgb=_WORDS,
        cloud=_QA,
        resolution=30,
    ),
    _entry(
        "nasa_earthdata",
        "HLSS30_2.0",
        "HLS_S30",
        _at(30, *_SENTINEL_2, "B10", "B11", "B12", "Fmask"),
        rgb=_TRUE_COLOUR,
        cloud=_FMASK,
        resolution=30,
    ),
    _entry(
        "nasa_earthdata",
        "HLSL30_2.0",
        "HLS_L30",
        _at(30, *(f"B0{number}" for number in (1, 2, 3, 4, 5, 6, 7, 9)), "B10", "B11", "Fmask"),
        rgb=_TRUE_COLOUR,
        cloud=_FMASK,
        resolution=30,
    ),
)
