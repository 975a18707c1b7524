"""One STAC 1.1 item per task: what was predicted, where, when, from what and by which model."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import pystac
import rasterio
from rasterio.io import DatasetReader

from geostudio_dagster import __version__
from geostudio_dagster.models.bundle import BundleManifest
from geostudio_dagster.raster.footprint import footprint_of
from geostudio_dagster.raster.opening import DRIVER, ONLY_THE_FILE

if TYPE_CHECKING:
    from geostudio_dagster.catalog import ArtifactRecord, ModelRecord, RequestRecord, TaskRecord

MEDIA_TYPE = "application/geo+json"
EXTENSIONS = (
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "https://stac-extensions.github.io/raster/v2.0.0/schema.json",
    "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
    "https://stac-extensions.github.io/file/v2.1.0/schema.json",
)
CLASSIFICATION = "https://stac-extensions.github.io/classification/v2.0.0/schema.json"

# Artifact name -> asset key, title, roles.
_ASSETS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "prediction": ("prediction", "Prediction", ("data",)),
    "masked": ("masked", "Prediction, with clouds, snow and ice masked", ("data",)),
    "rgb": ("rgb", "Input in colour", ("visual",)),
    "quicklook": ("thumbnail", "Quicklook of the prediction", ("thumbnail", "overview")),
    "stats": ("stats", "Statistics", ("metadata",)),
    "archive": ("archive", "All files of the task", ("archive",)),
    "scene": ("input", "Input scene", ("source",)),
}
_TIFF_DATETIME = "%Y:%m:%d %H:%M:%S"
_SHA256_MULTIHASH = "1220"
_METRES_PER_DEGREE = 111_320.0


def task_item(
    request: RequestRecord,
    task: TaskRecord,
    model: ModelRecord,
    artifacts: Sequence[ArtifactRecord],
    prediction: Path,
    *,
    scene: Path | None = None,
    gateway_url: str = "",
    statistics: Mapping[str, Any] | None = None,
    software: Mapping[str, str] | None = None,
) -> pystac.Item:
    """Describe one finished task. The same inputs give the same item, byte for byte.

    Args:
        request: the task's request; its creation time stands in for a date that nobody knows.
        task: the task; its date, if it has one, is the item's.
        model: the registered model.
        artifacts: the task's artifacts; known names become assets. Those in the task's own
            folder are linked relative to the item, which lies beside them.
        prediction: the prediction raster, which grid, CRS and bounds are read from.
        scene: the local input raster, looked at only for its TIFF DateTime tag.
        gateway_url: base address of the map page; empty leaves the link out.
        statistics: the task's statistics; ``classes[].value`` with ``pixels`` and ``share``
            (0 to 1) become the classes' counts and percentages.
        software: further software names and versions, such as ``{"torch": "2.13.0"}``.
    """
    manifest = BundleManifest.model_validate(model.manifest)
    moment, dates, source = _when(request, task, scene)
    with rasterio.open(prediction) as dataset:
        place, projection = footprint_of(dataset), _projection(dataset)
        bands = _bands(dataset, manifest)
    properties = {
        "title": f"{manifest.title or manifest.name}: {task.id}",
        **dates,
        **projection,
        **_processing(model, software or {}),
        **_origin(request, task, model),
        "geostudio:datetime_source": source,
    }
    item = pystac.Item(task.id, place.geometry, list(place.bounds), moment, properties)
    _add_assets(item, task, artifacts)
    _describe_pixels(item, bands, manifest, statistics or {})
    _add_links(item, request, task, gateway_url)
    for artifact in artifacts:
        for address in artifact.metadata.get("items") or () if artifact.name == "scene" else ():
            item.add_link(pystac.Link("derived_from", without_secrets(address)))
    return item


def _origin(request: RequestRecord, task: TaskRecord, model: ModelRecord) -> dict[str, str]:
    return {
        "geostudio:request": request.id,
        "geostudio:task": task.id,
        "geostudio:model": f"{model.name}@{model.version}",
        "geostudio:model_digest": model.digest,
    }


def _describe_pixels(
    item: pystac.Item,
    bands: list[dict[str, Any]],
    manifest: BundleManifest,
    statistics: Mapping[str, Any],
) -> None:
    """Say what the prediction's values mean, where it is among the item's assets."""
    item.stac_extensions += [*EXTENSIONS, *([CLASSIFICATION] if manifest.classes else [])]
    if "prediction" not in item.assets:
        return
    fields = item.assets["prediction"].extra_fields
    fields["bands"] = bands
    if manifest.classes:
        fields["classification:classes"] = _classes(manifest, statistics)


def item_json(item: pystac.Item) -> bytes:
    """The item as UTF-8 JSON with a fixed layout and order of keys."""
    document = item.to_dict(include_self_link=False, transform_hrefs=False)
    return (json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _when(
    request: RequestRecord, task: TaskRecord, scene: Path | None
) -> tuple[dt.datetime | None, dict[str, str], str]:
    """The item's datetime, or its start and end, and where they come from."""
    if task.date and "_" in task.date:
        first, last = (dt.date.fromisoformat(part) for part in task.date.split("_"))
        dates = {
            "start_datetime": f"{first.isoformat()}T00:00:00Z",
            "end_datetime": f"{last.isoformat()}T23:59:59Z",
        }
        return None, dates, "the task's dates"
    if task.date:
        day = dt.date.fromisoformat(task.date)
        return dt.datetime(day.year, day.month, day.day, tzinfo=dt.UTC), {}, "the task's date"
    tagged = _tiff_datetime(scene) if scene else None
    if tagged:
        return tagged, {}, "the scene's TIFF DateTime tag"
    return request.created_at, {}, "the request's creation, as the scene's date is not known"


def _tiff_datetime(scene: Path) -> dt.datetime | None:
    with rasterio.Env(**ONLY_THE_FILE), rasterio.open(scene, driver=DRIVER) as dataset:
        text = dataset.tags().get("TIFFTAG_DATETIME", "")
    try:
        return dt.datetime.strptime(text, _TIFF_DATETIME).replace(tzinfo=dt.UTC)
    except ValueError:
        return None


def _projection(dataset: DatasetReader) -> dict[str, Any]:
    left, bottom, right, top = (float(value) for value in dataset.bounds)
    fields: dict[str, Any] = {
        "proj:code": None,
        "proj:shape": [dataset.height, dataset.width],
        "proj:transform": [float(value) for value in list(dataset.transform)[:6]],
        # Rows may run northwards: rasterio then gives the northern edge as the bottom.
        "proj:bbox": [min(left, right), min(bottom, top), max(left, right), max(bottom, top)],
    }
    authority = dataset.crs.to_authority()
    if authority:
        fields["proj:code"] = ":".join(authority)
        return fields
    from pyproj import CRS  # only CRSs without a code need it

    crs = CRS.from_wkt(dataset.crs.to_wkt())
    fields["proj:wkt2"] = crs.to_wkt("WKT2_2019")
    fields["proj:projjson"] = crs.to_json_dict()
    return fields


def _processing(model: ModelRecord, software: Mapping[str, str]) -> dict[str, Any]:
    names = {
        "geostudio-dagster": __version__,
        f"model {model.name}": f"{model.version} (sha256 {model.digest})",
        **software,
    }
    return {
        "processing:level": "L4",  # model output, in the levels of CEOS
        "processing:lineage": f"Predicted by the model {model.name}, version {model.version}.",
        "processing:software": dict(sorted(names.items())),
    }


def _bands(dataset: DatasetReader, manifest: BundleManifest) -> list[dict[str, Any]]:
    bands = []
    for index, dtype, nodata in zip(
        dataset.indexes, dataset.dtypes, dataset.nodatavals, strict=True
    ):
        band: dict[str, Any] = {
            "name": dataset.descriptions[index - 1] or f"band {index}",
            "data_type": dtype,
            "raster:sampling": "area",
            "raster:spatial_resolution": _resolution(dataset),
        }
        if nodata is not None:
            band["nodata"] = "nan" if nodata != nodata else _plain(nodata)  # noqa: PLR0124
        if manifest.unit:
            band["unit"] = manifest.unit
        bands.append(band)
    return bands


def _resolution(dataset: DatasetReader) -> float:
    """Pixel size in metres, rounded to the millimetre."""
    size = float(abs(dataset.transform.a) + abs(dataset.transform.e)) / 2
    if dataset.crs.is_geographic:
        return round(size * _METRES_PER_DEGREE, 3)
    return round(size * float(dataset.crs.linear_units_factor[1]), 3)


def _plain(value: float) -> float | int:
    return int(value) if float(value).is_integer() else float(value)


def _classes(manifest: BundleManifest, statistics: Mapping[str, Any]) -> list[dict[str, Any]]:
    counted = {entry["value"]: entry for entry in statistics.get("classes", ())}
    classes: list[dict[str, Any]] = []
    for item in manifest.classes:
        entry: dict[str, Any] = {
            "value": item.value,
            # The extension takes names of letters, digits, - and _ only.
            "name": re.sub(r"[^0-9A-Za-z_-]+", "_", item.name).strip("_") or f"class_{item.value}",
            "title": item.name,
            "color_hint": item.colour.removeprefix("#").upper(),
        }
        if item.value in counted:
            entry["count"] = int(counted[item.value]["pixels"])
            entry["percentage"] = round(100 * float(counted[item.value]["share"]), 6)
        classes.append(entry)
    return [*classes, {"value": 255, "name": "nodata", "title": "No data", "nodata": True}]


def _add_assets(item: pystac.Item, task: TaskRecord, artifacts: Sequence[ArtifactRecord]) -> None:
    by_name = {artifact.name: artifact for artifact in artifacts}
    known = {name: asset for name, asset in _ASSETS.items() if name in by_name}
    known |= {a.name: _of_processor(a) for a in artifacts if "processor" in a.metadata}
    for name, (key, title, roles) in known.items():
        artifact = by_name[name]
        fields: dict[str, Any] = {}
        if artifact.size is not None:
            fields["file:size"] = artifact.size
        if artifact.sha256:
            fields["file:checksum"] = _SHA256_MULTIHASH + artifact.sha256
        item.add_asset(
            key,
            pystac.Asset(
                href=_href(artifact.key, task),
                title=title,
                media_type=artifact.media_type,
                roles=list(roles),
                extra_fields=fields,
            ),
        )


def _of_processor(artifact: ArtifactRecord) -> tuple[str, str, tuple[str, ...]]:
    """Asset key, title and roles of a file that a user's script wrote."""
    by = artifact.metadata["processor"]
    name = artifact.name.rpartition("/")[2]
    return artifact.name.replace("/", "-"), f"{name}, by {by}", ("data",)


def _href(key: str, task: TaskRecord) -> str:
    if "://" in key:
        return without_secrets(key)
    path = PurePosixPath(key)
    if path.parent == PurePosixPath(task.request_id, task.id):
        return f"./{path.name}"
    return f"../../{key}"


def without_secrets(url: str) -> str:
    """An address without user, password, query and fragment: signatures live there."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _add_links(
    item: pystac.Item, request: RequestRecord, task: TaskRecord, gateway_url: str
) -> None:
    if urlsplit(task.url).scheme in {"http", "https"}:
        item.add_link(
            pystac.Link("derived_from", without_secrets(task.url), title="The scene's origin")
        )
    if gateway_url:
        item.add_link(
            pystac.Link(
                "alternate",
                f"{gateway_url.rstrip('/')}/maps/{request.id}",
                media_type="text/html",
                title="Map",
            )
        )
