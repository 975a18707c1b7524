"""The end of a request: parts of split scenes are joined, layers published, the status set."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from geostudio_dagster.catalog import LayerRecord, ModelRecord, TaskRecord
from geostudio_dagster.errors import GeostudioError
from geostudio_dagster.installation import Installation
from geostudio_dagster.models.bundle import BundleManifest
from geostudio_dagster.pipeline.mosaics import Granule, join_parts
from geostudio_dagster.pipeline.stage import heartbeat, now
from geostudio_dagster.publish import styles
from geostudio_dagster.publish.geoserver import GeoServer, GranuleFile
from geostudio_dagster.publish.geoserver_rest import GeoServerError
from geostudio_dagster.publish.sld import style_document
from geostudio_dagster.settings import GeoServerSettings

Bounds = tuple[float, float, float, float]


class PublishDeferred(GeostudioError):
    """Publishing failed and will be tried again."""


@dataclass(frozen=True, slots=True)
class Published:
    """How a request ended: its status, its layers, and how many tasks are in them."""

    status: str
    uris: tuple[str, ...]
    granules: int
    bounds: Bounds | None
    finished: int
    failed: int


def publish_request(installation: Installation, request_id: str, run_id: str) -> Published:
    """Publish everything that the request's finished tasks made; redoing it changes nothing.

    Raises:
        Conflict: work on the request still goes on, or it was cancelled.
        PublishDeferred: GeoServer or the storage failed; the catalog knows when to try again.
    """
    catalog = installation.catalog
    with heartbeat(installation, run_id):
        catalog.begin_publish(request_id, run_id)
        try:
            layers = list(_publish_layers(installation, request_id))
        except (GeoServerError, OSError) as error:
            shards = installation.settings.shards
            catalog.defer_publish(
                request_id,
                str(error),
                now(),
                shards.retry_delay_s,
                shards.max_attempts,
                run_id=run_id,
            )
            raise PublishDeferred(str(error)) from error
        catalog.record_layers(request_id, layers)
        request = catalog.finish_publish(request_id, run_id=run_id)
    counts = catalog.summary(request_id).tasks_by_status
    return Published(
        status=str(request.status),
        uris=tuple(layer.uri for layer in layers),
        granules=sum(len(layer.granules) for layer in layers),
        bounds=_union(layer.bounds for layer in layers) if layers else None,
        finished=counts.get("FINISHED", 0),
        failed=counts.get("FAILED", 0),
    )


def _publish_layers(installation: Installation, request_id: str) -> Iterator[LayerRecord]:
    catalog = installation.catalog
    request = catalog.request(request_id)
    model = catalog.model(request.model_id)
    manifest = installation.bundle(model).manifest
    tasks = list(catalog.publishable_tasks(request_id))
    if not tasks:
        return
    pictures = _granules(installation, tasks, "rgb")
    predictions = join_parts(
        installation, request_id, _granules(installation, tasks, "prediction")
    )
    style = _prediction_style(manifest, predictions)
    wanted = (
        ("input_rgb", "Input", styles.rgb_style(), pictures),
        ("pred", manifest.title or model.name, style, predictions),
    )
    for name, title, style, granules in wanted:
        if granules:
            label = f"{title} · {request.spec.get('name') or request_id[:8]}"
            yield _publish(installation, request_id, name, label, style, granules, model)


def _granules(
    installation: Installation, tasks: Sequence[TaskRecord], role: str
) -> list[Granule]:
    return [Granule(task, installation.catalog.artifact(task.id, role)) for task in tasks]


def _prediction_style(manifest: BundleManifest, granules: Sequence[Granule]) -> dict[str, Any]:
    ranges = [granule.artifact.metadata.get("range") for granule in granules]
    known = [(float(low), float(high)) for low, high in filter(None, ranges)]
    spread = (min(low for low, _ in known), max(high for _, high in known)) if known else None
    return styles.prediction_style(manifest, spread)


def _publish(
    installation: Installation,
    request_id: str,
    name: str,
    title: str,
    style: dict[str, Any],
    granules: Sequence[Granule],
    model: ModelRecord,
) -> LayerRecord:
    digest = _digest(title, style, granules)
    layer_name = f"{request_id}-{name}"
    settings = installation.settings.geoserver
    if settings is not None:
        uri = _to_geoserver(
            installation, settings, layer_name, title, style, digest, granules, model
        )
    else:
        uri = f"{installation.settings.gateway_url}/layers/{request_id}/{name}"
    return LayerRecord(
        request_id=request_id,
        name=name,
        title=title,
        kind="raster",
        bounds=_union(granule.artifact.metadata["bounds"] for granule in granules),
        style=style,
        granules=tuple(
            {
                "task_id": granule.task.id,
                "key": granule.artifact.key,
                "bounds": granule.artifact.metadata["bounds"],
            }
            for granule in granules
        ),
        uri=uri,
        digest=digest,
        published_at=dt.datetime.now(dt.UTC),
    )


def _to_geoserver(
    installation: Installation,
    settings: GeoServerSettings,
    layer_name: str,
    title: str,
    style: dict[str, Any],
    digest: str,
    granules: Sequence[Granule],
    model: ModelRecord,
) -> str:
    files = [
        GranuleFile(
            path=installation.path_of(granule.artifact),
            name=granule.artifact.key.rsplit("/", 1)[1].rsplit(".", 1)[0],
            crs=str(granule.artifact.metadata.get("crs", "")),
            date=granule.task.date,
        )
        for granule in granules
    ]
    with GeoServer(settings) as server:
        return server.publish_layer(
            layer_name,
            title=title,
            abstract=f"Made by {model.name}, version {model.version}.",
            style=style_document(style, layer_name, title),
            digest=digest,
            granules=files,
        ).uri


def _digest(title: str, style: dict[str, Any], granules: Sequence[Granule]) -> str:
    content = [title, style, [[g.artifact.key, g.artifact.sha256] for g in granules]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _union(boxes: Iterable[Sequence[float]]) -> Bounds:
    west, south, east, north = zip(*boxes, strict=True)
    return min(west), min(south), max(east), max(north)
