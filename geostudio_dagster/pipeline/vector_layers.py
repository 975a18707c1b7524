"""Vector layers: the features that scripts wrote for many tasks, joined in one GeoPackage."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from geostudio_dagster.catalog import ArtifactRecord
from geostudio_dagster.installation import Installation
from geostudio_dagster.pipeline.mosaics import Granule
from geostudio_dagster.processors.features import Bounds, TaskFile
from geostudio_dagster.processors.joining import join_isolated
from geostudio_dagster.processors.sandbox import choose_sandbox
from geostudio_dagster.publish.vectors import MEDIA_TYPE, package_role
from geostudio_dagster.settings import Settings
from geostudio_dagster.storage import request_key

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JoinedVectors:
    """The granules that have features, each with ``bounds`` in its metadata, and their union."""

    granules: tuple[Granule, ...]
    package: ArtifactRecord


def join_vectors(
    installation: Installation,
    layer: str,
    granules: Sequence[Granule],
    run_id: str,
) -> JoinedVectors | None:
    """The features of all granules as one artifact of the request; None where there are none.

    Nothing is joined again while the granules are the same.
    """
    request_id = granules[0].task.request_id
    known = {artifact.name: artifact for artifact in installation.catalog.artifacts(request_id)}
    made_from = _fingerprint(granules)
    package = known.get(package_role(layer))
    if package is None or package.metadata.get("made_from") != made_from:
        package = _join(installation, layer, granules, made_from=made_from, run_id=run_id)
    if package is None:
        log.warning("no file of layer %s has a feature: it stays out", layer)
        return None
    bounds = package.metadata["bounds_of_files"]
    placed = tuple(
        Granule(granule.task, _at(granule.artifact, bounds[granule.artifact.key]))
        for granule in granules
        if granule.artifact.key in bounds
    )
    return JoinedVectors(placed, package)


def _join(
    installation: Installation,
    layer: str,
    granules: Sequence[Granule],
    *,
    made_from: str,
    run_id: str,
) -> ArtifactRecord | None:
    request_id = granules[0].task.request_id
    scratch_name = f"{request_id}-vectors-{layer}"
    files = [
        TaskFile(granule.task.id, installation.path_of(granule.artifact)) for granule in granules
    ]
    try:
        target = installation.storage.scratch(scratch_name, run_id) / f"{request_id}_{layer}.gpkg"
        bounds = _isolated(installation.settings, files, target, f"{request_id}-{layer}")
        if not any(bounds):
            return None
        stored = installation.storage.commit(target, request_key(request_id, target.name))
    finally:
        installation.storage.discard_scratch(scratch_name, run_id)
    keys = [granule.artifact.key for granule in granules]
    record = ArtifactRecord(
        owner_id=request_id,
        name=package_role(layer),
        key=stored.key,
        media_type=MEDIA_TYPE,
        size=stored.size,
        sha256=stored.sha256,
        metadata={
            "made_from": made_from,
            "crs": "EPSG:4326",
            "bounds_of_files": {k: list(b) for k, b in zip(keys, bounds, strict=True) if b},
        },
    )
    installation.catalog.put_artifacts([record])
    return record


def _isolated(
    settings: Settings, files: Sequence[TaskFile], target: Path, name: str
) -> tuple[Bounds | None, ...]:
    return join_isolated(
        files,
        target,
        name,
        folder=target.with_suffix(".join"),
        limits=settings.processors.limits,
        sandbox=choose_sandbox(settings.processors, hidden=(settings.data_folder,)),
    )


def _at(artifact: ArtifactRecord, bounds: Sequence[float]) -> ArtifactRecord:
    return dataclasses.replace(artifact, metadata={**artifact.metadata, "bounds": list(bounds)})


def _fingerprint(granules: Sequence[Granule]) -> str:
    content = "\n".join(f"{granule.task.id} {granule.artifact.sha256}" for granule in granules)
    return hashlib.sha256(content.encode()).hexdigest()
