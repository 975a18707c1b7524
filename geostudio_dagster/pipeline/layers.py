"""The end of a request: parts of split scenes are joined, layers published, the status set."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from geostudio_dagster.catalog import ArtifactRecord, LayerRecord, TaskRecord
from geostudio_dagster.catalog.states import PUSH
from geostudio_dagster.errors import GeostudioError, NotFound, Unavailable
from geostudio_dagster.installation import Installation
from geostudio_dagster.models.bundle import BundleManifest
from geostudio_dagster.pipeline import steplog
from geostudio_dagster.pipeline.mosaics import Granule, join_parts
from geostudio_dagster.pipeline.output_layers import layers_of_processors
from geostudio_dagster.pipeline.stage import heartbeat, now
from geostudio_dagster.publish import styles
from geostudio_dagster.publish.geoserver import GeoServer, GranuleFile
from geostudio_dagster.publish.geoserver_rest import GeoServerError
from geostudio_dagster.publish.geoserver_vectors import VectorGeoServer
from geostudio_dagster.publish.layers import union, with_shares
from geostudio_dagster.publish.sld import style_document
from geostudio_dagster.raster.footprint import Bounds
from geostudio_dagster.settings import GeoServerSettings

log = logging.getLogger(__name__)


class PublishDeferred(GeostudioError):
    """Publishing failed; it is tried again, unless that cannot help."""


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
        LeaseLost: another run publishes the request meanwhile.
        PublishDeferred: GeoServer or the storage failed; the catalog knows when to try again,
            or has failed the tasks where GeoServer's refusal is final.
    """
    catalog = installation.catalog
    header = f"{PUSH}, run {run_id}, {now():%F %T} UTC"
    with heartbeat(installation, run_id):
        catalog.begin_publish(request_id, run_id)
        key = steplog.request_log_key(request_id, PUSH)
        with steplog.recording(installation.storage, key, header):
            layers = _publish_all(installation, request_id, run_id)
            catalog.record_layers(request_id, layers, run_id=run_id)
            request = catalog.finish_publish(request_id, run_id=run_id)
            log.info("the request is %s", request.status)
    counts = catalog.summary(request_id).tasks_by_status
    return Published(
        status=str(request.status),
        uris=tuple(layer.uri for layer in layers),
        granules=sum(len(layer.granules) for layer in layers),
        bounds=union(layer.bounds for layer in layers),
        finished=counts.get("FINISHED", 0),
        failed=counts.get("FAILED", 0),
    )


def _publish_all(installation: Installation, request_id: str, run_id: str) -> list[LayerRecord]:
    try:
        return list(_publish_layers(installation, request_id, run_id))
    except (GeoServerError, OSError, Unavailable) as error:
        shards = installation.settings.shards
        final = isinstance(error, GeoServerError) and not error.retryable
        log.warning("publishing failed%s: %s", "" if final else ", to be tried again", error)
        installation.catalog.defer_publish(
            request_id,
            str(error),
            now(),
            shards.retry_delay_s,
            max_attempts=1 if final else shards.max_attempts,
            run_id=run_id,
        )
        raise PublishDeferred(str(error)) from error


@dataclass(frozen=True, slots=True)
class _Draft:
    """A layer as it is to be published."""

    request_id: str
    name: str
    title: str
    abstract: str
    style: dict[str, Any]
    granules: tuple[Granule, ...]
    package: ArtifactRecord | None = None  # the joined features, of a vector layer

    @property
    def layer_name(self) -> str:
        """The name on GeoServer, where all requests share a workspace."""
        return f"{self.request_id}-{self.name}"

    @property
    def bounds(self) -> Bounds:
        """West, south, east, north around all granules, degrees."""
        around = union(tuple(granule.artifact.metadata["bounds"]) for granule in self.granules)
        if around is None:
            raise ValueError(f"layer {self.layer_name} has no granules")
        return around

    @property
    def digest(self) -> str:
        """Changes whenever pixels, style or title do."""
        pixels = [[granule.artifact.key, granule.artifact.sha256] for granule in self.granules]
        content = json.dumps([self.title, self.style, pixels], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


def _publish_layers(
    installation: Installation, request_id: str, run_id: str
) -> Iterator[LayerRecord]:
    for draft in _drafts(installation, request_id, run_id):
        if draft.granules:
            yield _publish(installation, draft)


def _drafts(installation: Installation, request_id: str, run_id: str) -> Iterator[_Draft]:
    catalog = installation.catalog
    request = catalog.request(request_id)
    model = catalog.model(request.model_id)
    manifest = installation.bundle(model).manifest
    tasks = list(catalog.publishable_tasks(request_id))
    pictures = _granules(installation, tasks, "rgb")
    masking = request.spec.get("masking")
    parts = _granules(installation, tasks, "masked" if masking else "prediction")
    predictions = join_parts(installation, request_id, parts, run_id)
    subject = request.spec.get("name") or request_id[:8]
    made_by = f"{model.name}, version {model.version}"
    yield _Draft(
        request_id,
        "input_rgb",
        f"Input · {subject}",
        f"What {made_by} has seen.",
        styles.rgb_style(),
        tuple(pictures),
    )
    yield _Draft(
        request_id,
        "pred",
        f"{manifest.title or model.name} · {subject}",
        f"Made by {made_by}.",
        _style(installation, manifest, tasks, masking["kinds"] if masking else ()),
        tuple(predictions),
    )
    for found in layers_of_processors(installation, request, tasks, manifest, run_id):
        abstract = f"What users' processors made of the output of {made_by}."
        title = f"{found.title} · {subject}"
        yield _Draft(
            request_id, found.name, title, abstract, found.style, found.granules, found.package
        )


def _granules(installation: Installation, tasks: Sequence[TaskRecord], role: str) -> list[Granule]:
    artifacts = _artifacts(installation, tasks, role)
    return [Granule(task, artifact) for task, artifact in zip(tasks, artifacts, strict=True)]


def _artifacts(
    installation: Installation, tasks: Sequence[TaskRecord], role: str
) -> list[ArtifactRecord]:
    found = installation.catalog.artifacts_named(role, [task.id for task in tasks])
    missing = next((task.id for task in tasks if task.id not in found), None)
    if missing is not None:
        raise NotFound(f"{missing} has no artifact {role}.")
    return [found[task.id] for task in tasks]


def _style(
    installation: Installation,
    manifest: BundleManifest,
    tasks: Sequence[TaskRecord],
    masked: Sequence[str],
) -> styles.LayerStyle:
    """The prediction's style: classes with their areas, or a ramp over the values that occur."""
    figures = [artifact.metadata for artifact in _artifacts(installation, tasks, "stats")]
    known = [(f["min"], f["max"]) for f in figures if f.get("min") is not None]
    spread = (min(low for low, _ in known), max(high for _, high in known)) if known else None
    style = styles.masked_style(styles.prediction_style(manifest, spread), masked)
    return with_shares(style, figures)


def _publish(installation: Installation, draft: _Draft) -> LayerRecord:
    settings = installation.settings
    if settings.geoserver is not None:
        uri = _to_geoserver(installation, settings.geoserver, draft)
    else:
        uri = f"{settings.gateway_url}/layers/{draft.request_id}/{draft.name}"
    log.info("layer %s of %d granules: %s", draft.name, len(draft.granules), uri)
    return LayerRecord(
        request_id=draft.request_id,
        name=draft.name,
        title=draft.title,
        kind="vector" if draft.package else "raster",
        bounds=draft.bounds,
        style=draft.style,
        granules=tuple(
            {
                "task_id": granule.task.id,
                "key": granule.artifact.key,
                "bounds": granule.artifact.metadata["bounds"],
            }
            for granule in draft.granules
        ),
        uri=uri,
        digest=draft.digest,
        published_at=now(),
    )


def _to_geoserver(installation: Installation, settings: GeoServerSettings, draft: _Draft) -> str:
    style = style_document(draft.style, draft.layer_name, draft.title)
    if draft.package is not None:
        with VectorGeoServer(settings) as server:
            return server.publish_features(
                draft.layer_name,
                title=draft.title,
                abstract=draft.abstract,
                style=style,
                digest=draft.digest,
                package=installation.path_of(draft.package),
                bounds=draft.bounds,
            ).uri
    files = [
        GranuleFile(
            path=installation.path_of(granule.artifact),
            name=granule.artifact.key.rsplit("/", 1)[1].rsplit(".", 1)[0],
            crs=str(granule.artifact.metadata.get("crs", "")),
            date=granule.task.date,
        )
        for granule in draft.granules
    ]
    with GeoServer(settings) as server:
        return server.publish_layer(
            draft.layer_name,
            title=draft.title,
            abstract=draft.abstract,
            style=style,
            digest=draft.digest,
            granules=files,
        ).uri
