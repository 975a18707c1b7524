"""What an item of a STAC API offers: when, where, how cloudy, and where its bands' pixels are."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin

from geostudio_dagster.connectors.addresses import (
    UnacceptableAddressError,
    http_url,
    refuse_closed_number,
    shown,
)
from geostudio_dagster.settings import Settings
from geostudio_dagster.stac_settings import AssetBand, StacSearch

# Sentinel-2 products since baseline 04.00 store reflectance x 10^4 + 1000. Items that tell it by
# the baseline alone (Planetary Computer's) are of the bands' numbers, not of other products.
_BASELINE, _SINCE = "s2:processing_baseline", 4.0
_OFFSET, _SCALE = -0.1, 1e-4
_NO_REFLECTANCE = frozenset({"aot", "wvp", "scl", "cld", "snw", "visual", "tci"})
_LONGEST_NAME = 200  # characters
_OFFSET_IS_OFF = ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied")

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class BandSource:
    """The pixels of one band of an item.

    Attributes:
        href: http(s) address of a GeoTIFF. band: in it, from 1.
        scale: what a number is multiplied by to get the quantity; None if it is not told.
        offset: what is added then, in units of the quantity.
        nodata: the number that stands for no data, if told.
    """

    href: str
    band: int
    scale: float | None = None
    offset: float = 0.0
    nodata: float | None = None


@dataclass(frozen=True, slots=True)
class Granule:
    """An item that can be used, or why it can not.

    Attributes:
        moment: when it was taken, UTC. cloud: percent, None if it is not told.
        geometry: GeoJSON in EPSG:4326, a polygon. link: its own address, if told.
        bands: by the names that were asked for. lacks: why a band of it cannot be read.
    """

    id: str
    moment: dt.datetime
    cloud: float | None
    geometry: dict[str, Any]
    link: str | None
    bands: dict[str, BandSource]
    lacks: tuple[str, ...]


def granule_of(
    item: Document,
    search: StacSearch,
    wanted: Mapping[str, AssetBand],
    classes: frozenset[str],
    settings: Settings,
) -> Granule | None:
    """Read an item; None where it tells no time or place, and so can't be used at all.

    Args:
        wanted: the bands to be read, by name. classes: those of them that hold codes.
    """
    properties = _mapping(item.get("properties"))
    moment, geometry, identifier = _moment(properties), _geometry(item), item.get("id")
    if moment is None or geometry is None or not isinstance(identifier, str):
        return None
    if not identifier.isprintable():  # no database holds a NUL
        return None
    link = _self_link(item)
    bands: dict[str, BandSource] = {}
    lacks: list[str] = []
    for name, place in wanted.items():
        asset = _mapping(_mapping(item.get("assets")).get(place.asset))
        try:
            href = _href(asset, place.asset, link, settings)
        except ValueError as error:
            lacks.append(str(error))
            continue
        bands[name] = _source(href, asset, place, properties, search, is_class=name in classes)
    cloud = properties.get(search.cloud_cover) if search.cloud_cover else None
    return Granule(
        id=identifier[:_LONGEST_NAME],
        moment=moment,
        cloud=_number(cloud),
        geometry=geometry,
        link=link,
        bands=bands,
        lacks=tuple(dict.fromkeys(lacks)),
    )


def _href(asset: Document, key: str, link: str | None, settings: Settings) -> str:
    """The asset's address, checked.

    Raises:
        ValueError: it has none that can be read here.
    """
    if not isinstance(asset.get("href"), str):
        raise ValueError(f"no asset {key}")  # noqa: TRY004 - what items say is data
    kind = str(asset.get("type") or "image/tiff").lower()
    if not kind.startswith("image/tiff"):
        raise ValueError(f"asset {key} is {shown(kind)[:60]}, and GeoTIFFs are read")
    offered = [asset, *_mapping(asset.get("alternate")).values()]
    texts = [str(_mapping(one).get("href", "")) for one in offered]
    texts = [urljoin(link, text) if link and "://" not in text else text for text in texts]
    address = next((text for text in texts if text.lower().startswith(("http:", "https:"))), None)
    if address is None:
        scheme = shown(texts[0]).partition(":")[0][:20]
        raise ValueError(f"asset {key} has no http(s) address ({scheme})")
    try:
        url = http_url(address)
        refuse_closed_number(url.host, address, settings)
    except UnacceptableAddressError as error:
        raise ValueError(f"asset {key} may not be read: {error.problem}") from error
    return str(url)


def _source(
    href: str,
    asset: Document,
    place: AssetBand,
    properties: Document,
    search: StacSearch,
    *,
    is_class: bool,
) -> BandSource:
    told = _told(asset, place.band)
    nodata = _number(told.get("nodata"))
    nodata = search.nodata if nodata is None else nodata
    if is_class:
        return BandSource(href, place.band, nodata=nodata)
    scale, offset = _number(told.get("scale")), _number(told.get("offset"))
    if offset is None and _has_offset_by_baseline(properties, place.asset):
        scale, offset = scale or _SCALE, _OFFSET
    if search.offset == "none" or any(properties.get(name) is True for name in _OFFSET_IS_OFF):
        offset = 0.0
    return BandSource(href, place.band, scale or None, offset or 0.0, nodata)


def _told(asset: Document, band: int) -> dict[str, Any]:
    """Scale, offset and nodata of a band, wherever STAC 1.0 and 1.1 have them."""
    told: dict[str, Any] = {}
    for group in ("raster:bands", "bands"):
        entries = asset.get(group)
        entry = entries[band - 1] if isinstance(entries, list) and len(entries) >= band else {}
        for place in (_mapping(entry), asset):
            for name in ("scale", "offset", "nodata"):
                # A bare scale of the asset is of other extensions; nodata is a common field.
                bare = name if place is not asset or name == "nodata" else ""
                for key in (bare, f"raster:{name}"):
                    if place.get(key) is not None:
                        told.setdefault(name, place[key])
    return told


def _has_offset_by_baseline(properties: Document, asset: str) -> bool:
    baseline = _number(properties.get(_BASELINE))
    return baseline is not None and baseline >= _SINCE and asset.lower() not in _NO_REFLECTANCE


def _moment(properties: Document) -> dt.datetime | None:
    for name in ("datetime", "start_datetime"):
        text = properties.get(name)
        if isinstance(text, str):
            try:
                moment = dt.datetime.fromisoformat(text)
                return (
                    moment.replace(tzinfo=dt.UTC)
                    if moment.tzinfo is None
                    else moment.astimezone(dt.UTC)
                )
            except (ValueError, OverflowError):
                continue
    return None


def _geometry(item: Document) -> dict[str, Any] | None:
    geometry = item.get("geometry")
    if isinstance(geometry, Mapping) and geometry.get("type") in ("Polygon", "MultiPolygon"):
        return dict(geometry)
    box = item.get("bbox")
    numbers = [_number(value) for value in box] if isinstance(box, list) else []
    if len(numbers) not in (4, 6) or None in numbers:
        return None
    west, south, *_, east, north = (
        numbers if len(numbers) == 4 else [*numbers[:2], *numbers[3:5]]  # noqa: PLR2004 - heights
    )
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {"type": "Polygon", "coordinates": [ring]}


def _self_link(item: Document) -> str | None:
    links = item.get("links")
    for link in links if isinstance(links, list) else ():
        if isinstance(link, Mapping) and link.get("rel") == "self":
            try:
                return str(http_url(str(link.get("href"))))
            except UnacceptableAddressError:
                return None
    return None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    """A number as STAC writes it, also as text; None for anything else."""
    if value is None or isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return None if math.isinf(number) else number
