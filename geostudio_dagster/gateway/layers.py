"""A request's layers: their description, their tiles, their values, their features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, HTTPException, Path, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from geostudio_dagster.errors import NotFound
from geostudio_dagster.gateway.grants import Guest, Visitor
from geostudio_dagster.gateway.place import GatewayPlace, Place
from geostudio_dagster.publish.layers import boxes, union

if TYPE_CHECKING:
    from geostudio_dagster.catalog import LayerRecord

router = APIRouter(prefix="/layers", tags=["layers"])

_LARGEST_ZOOM = 24
_MOST_FOOTPRINTS = 2000
_MOST_FEATURES = 50_000
_FOREVER = "private, max-age=31536000, immutable"
_ASK_AGAIN = "private, no-cache"
_VERSION_DIGITS = 16

Zoom = Annotated[int, Path(ge=0, le=_LARGEST_ZOOM)]
TileNumber = Annotated[int, Path(ge=0)]
Longitude = Annotated[float, Query(ge=-180, le=180, allow_inf_nan=False)]
Latitude = Annotated[float, Query(ge=-90, le=90, allow_inf_nan=False)]


@router.get("/{request_id}")
def describe(request_id: str, request: Request, guest: Guest, place: Place) -> JSONResponse:
    """The request in short, and its layers with bounds, legend and tile address templates."""
    guest.request(request_id)
    records = place.shelf.records(request_id)
    document = {
        "request": _request_in_short(place, request_id),
        "bounds": union(record.bounds for record in records),
        "layers": [
            _described(place, record, _Addresses(request, record, guest)) for record in records
        ],
        "footprints": _footprints(records),
    }
    return JSONResponse(document, headers={"Cache-Control": _ASK_AGAIN})


@router.get("/{request_id}/{layer}/tilejson.json")
def tilejson(
    request_id: str, layer: str, request: Request, guest: Guest, place: Place
) -> JSONResponse:
    """The layer as TileJSON 3.0, which QGIS and web maps open directly."""
    from titiler.core.models.mapbox import TileJSON  # heavy

    guest.request(request_id)
    shown = place.shelf.layer(request_id, layer)
    (west, south, east, north), *_ = boxes(shown.record.bounds)
    document = TileJSON(
        tilejson="3.0.0",
        name=shown.record.title,
        tiles=[_Addresses(request, shown.record, guest).tiles],
        minzoom=shown.minzoom,
        maxzoom=shown.maxzoom,
        bounds=[west, south, east, north],
        center=((west + east) / 2, (south + north) / 2, shown.minzoom),
    )
    return JSONResponse(
        document.model_dump(exclude_none=True), headers={"Cache-Control": _ASK_AGAIN}
    )


@router.get("/{request_id}/{layer}/tiles/{z}/{x}/{y}.png", response_class=Response)
def tile(
    *,
    request_id: str,
    layer: str,
    z: Zoom,
    x: TileNumber,
    y: TileNumber,
    request: Request,
    guest: Guest,
    place: Place,
    v: str = "",
) -> Response:
    """A Web Mercator tile as RGBA PNG; transparent where the layer has no data.

    ``v``, as the templates carry it, names the layer's version: such an answer never changes.
    """
    from geostudio_dagster.gateway.rendering import tile_png  # heavy

    if x >= 1 << z or y >= 1 << z:
        raise HTTPException(404, f"There is no tile {z}/{x}/{y}.")
    guest.request(request_id)
    shown = place.shelf.layer(request_id, layer)
    version = shown.record.digest[:_VERSION_DIGITS]
    headers = {
        "ETag": f'"{version}-{z}-{x}-{y}"',
        "Cache-Control": _FOREVER if v == version else _ASK_AGAIN,
    }
    if headers["ETag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(tile_png(shown, z, x, y), media_type="image/png", headers=headers)


@router.get("/{request_id}/{layer}/point")
def point(
    *, request_id: str, layer: str, lon: Longitude, lat: Latitude, guest: Guest, place: Place
) -> JSONResponse:
    """The layer's value at a place in degrees; ``value`` is null where there is no data."""
    from geostudio_dagster.gateway.rendering import point_value  # heavy

    guest.request(request_id)
    shown = place.shelf.layer(request_id, layer)
    found = point_value(shown, lon, lat) or {"value": None}
    return JSONResponse({"lon": lon, "lat": lat, **found}, headers={"Cache-Control": _ASK_AGAIN})


@router.get("/{request_id}/{layer}/features.geojson", response_class=StreamingResponse)
def features(
    *,
    request_id: str,
    layer: str,
    request: Request,
    guest: Guest,
    place: Place,
    v: str = "",
) -> Response:
    """The features of a vector layer as GeoJSON, at most 50,000: then ``cut`` says so.

    ``v``, as the layer's description carries it, names its version: that answer never changes.
    """
    from geostudio_dagster.publish.vectors import geojson_of, package_role  # heavy

    guest.request(request_id)
    record = place.shelf.record(request_id, layer)
    if record.kind != "vector":
        raise NotFound(
            f"Layer {layer} of request {request_id} is a raster layer, which has no features; ask"
            " for its tiles."
        )
    version = record.digest[:_VERSION_DIGITS]
    headers = {
        "ETag": f'"{version}-features"',
        "Cache-Control": _FOREVER if v == version else _ASK_AGAIN,
    }
    if headers["ETag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    package = place.catalog.artifact(request_id, package_role(layer))
    path = place.storage.path(package.key)
    if not path.is_file():
        raise NotFound(f"The features of layer {layer} are not there any more.")
    pieces = geojson_of(path, _MOST_FEATURES)
    return StreamingResponse(pieces, media_type="application/geo+json", headers=headers)


def _request_in_short(place: GatewayPlace, request_id: str) -> dict[str, Any]:
    summary = place.catalog.summary(request_id)
    record, model = summary.request, summary.model
    return {
        "id": record.id,
        "name": record.spec.get("name") or "",
        "description": record.spec.get("description") or "",
        "location": record.spec.get("location") or "",
        "status": record.status.value,
        "error": record.error,
        "over": record.finished_at is not None,
        "created_at": record.created_at.isoformat(),
        "finished_at": record.finished_at.isoformat() if record.finished_at else None,
        "tasks": {key: count for key, count in summary.tasks_by_status.items() if count},
        "pixels_done": summary.pixels_done,
        "pixels_total": summary.pixels_total,
        "model": {
            "name": model.name,
            "version": model.version,
            "digest": model.digest,
            "title": model.manifest.get("title") or model.name,
            "description": model.manifest.get("description") or "",
        },
    }


def _described(place: GatewayPlace, record: LayerRecord, addresses: _Addresses) -> dict[str, Any]:
    common = {
        "name": record.name,
        "title": record.title,
        "kind": record.kind,
        "uri": record.uri,
        "digest": record.digest,
        "published_at": record.published_at.isoformat(),
        "bounds": record.bounds,
        "granules": len(record.granules),
        "style": record.style,
    }
    if record.kind == "vector":
        return {**common, "features": addresses.features}
    shown = place.shelf.layer(record.request_id, record.name)
    return {
        **common,
        "minzoom": shown.minzoom,
        "maxzoom": shown.maxzoom,
        "tiles": [addresses.tiles],
        "tilejson": addresses.of("tilejson.json"),
        "point": addresses.of("point"),
    }


@dataclass(frozen=True, slots=True)
class _Addresses:
    """A layer's addresses, as whoever asks can reach them."""

    request: Request
    record: LayerRecord
    guest: Visitor

    def of(self, what: str, **query: str) -> str:
        """The address of something of the layer; a link's token is carried on."""
        base = str(self.request.base_url).rstrip("/")
        ids = (quote(self.record.request_id, safe=""), quote(self.record.name, safe=""))
        wanted = "&".join(filter(None, (urlencode(query), self.guest.query)))
        address = f"{base}/layers/{'/'.join(ids)}/{what}"
        return f"{address}?{wanted}" if wanted else address

    @property
    def tiles(self) -> str:
        """The template of the tiles' addresses, which changes with the layer's version."""
        return self.of("tiles/{z}/{x}/{y}.png", v=self.record.digest[:_VERSION_DIGITS])

    @property
    def features(self) -> str:
        """The address of a vector layer's features, which changes with its version."""
        return self.of("features.geojson", v=self.record.digest[:_VERSION_DIGITS])


def _footprints(records: tuple[LayerRecord, ...]) -> dict[str, Any]:
    """Boxes of the granules, for outlines on the map.

    They are taken from the raster layer that has fewest: in it the parts of split scenes are
    joined.
    """
    rasters = [record for record in records if record.kind == "raster"]
    plainest = min(rasters, key=lambda record: len(record.granules), default=None)
    granules = plainest.granules[:_MOST_FOOTPRINTS] if plainest else ()
    return {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "properties": {"task_id": granule["task_id"]},
                "geometry": _rectangle(*part),
            }
            for granule in granules
            for part in boxes(granule["bounds"])
        ],
    }


def _rectangle(west: float, south: float, east: float, north: float) -> dict[str, Any]:
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {"type": "Polygon", "coordinates": [ring]}
