"""Map layers of what users' scripts wrote, picked by the end of the files' names."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import rasterio
from numpy.typing import NDArray
from pydantic import TypeAdapter
from rasterio.enums import Resampling

from geostudio_dagster.catalog import ArtifactRecord, Position, RequestRecord, TaskRecord
from geostudio_dagster.installation import Installation
from geostudio_dagster.models.bundle import BundleManifest
from geostudio_dagster.pipeline.mosaics import Granule
from geostudio_dagster.pipeline.vector_layers import join_vectors
from geostudio_dagster.planning.output_styles import VectorStyle
from geostudio_dagster.planning.request import OutputLayer
from geostudio_dagster.publish import styles

log = logging.getLogger(__name__)

_MOST = 16
_SAMPLED = 20  # granules whose values a ramp is made from
_SIDE = 512  # pixels of a granule that are looked at, a side
_RGB = 3
_OF_PIXELS = frozenset({"classes", "ramp", "rgb"})
_LAYERS = TypeAdapter(tuple[OutputLayer, ...])


@dataclass(frozen=True, slots=True)
class FoundLayer:
    """A layer that processors' files make, with its files.

    ``package`` holds the joined features where the files are vectors, else it is None.
    """

    name: str
    title: str
    style: styles.LayerStyle
    granules: tuple[Granule, ...]
    package: ArtifactRecord | None = None


def layers_of_processors(
    installation: Installation,
    request: RequestRecord,
    tasks: Sequence[TaskRecord],
    manifest: BundleManifest,
    run_id: str,
) -> Iterator[FoundLayer]:
    """The layers that the request asks for, or one of every raster that its processors write."""
    rasters, vectors = _files(installation, tasks, "raster"), _files(installation, tasks, "vector")
    asked_for = _LAYERS.validate_python(request.spec.get("output_layers") or ())
    wanted = asked_for or _one_each(rasters)
    if len(wanted) > _MOST:
        names = ", ".join(layer.suffix for layer in wanted[_MOST:])
        log.warning("more than %d layers; these are not published: %s", _MOST, names)
    for layer in wanted[:_MOST]:
        given = layer.style.model_dump() if layer.style else {"kind": ""}
        title = layer.title or layer.name
        if granules := _picked(tasks, rasters, layer.suffix):
            own = given["kind"] in _OF_PIXELS
            style = given if own else _style(installation, granules, manifest)
            yield FoundLayer(layer.name, title, style, granules)
        elif granules := _picked(tasks, vectors, layer.suffix):
            style = given if given["kind"] == "vector" else VectorStyle().model_dump()
            joined = join_vectors(installation, layer.name, granules, run_id)
            if joined is not None:
                yield FoundLayer(layer.name, title, style, joined.granules, joined.package)
        else:
            log.warning("no file ends in %s: layer %s stays out", layer.suffix, layer.name)


def _picked(
    tasks: Sequence[TaskRecord], files: Mapping[str, Sequence[ArtifactRecord]], suffix: str
) -> tuple[Granule, ...]:
    return tuple(
        Granule(task, artifact)
        for task in tasks
        for artifact in files.get(task.id, ())
        if artifact.key.endswith(suffix)
    )


def _files(
    installation: Installation, tasks: Sequence[TaskRecord], kind: str
) -> dict[str, list[ArtifactRecord]]:
    """Each task's files of one kind of users' scripts, in the order in which they were made."""
    owners = [task.id for task in tasks]
    found: dict[str, list[ArtifactRecord]] = {}
    for position in (Position.BEFORE_POSTPROCESS, Position.AFTER_POSTPROCESS):
        made = installation.catalog.artifacts_in_role(f"{position}/", owners)
        for owner, artifacts in made.items():
            found.setdefault(owner, []).extend(
                artifact for artifact in artifacts if artifact.metadata.get("kind") == kind
            )
    return found


def _one_each(rasters: Mapping[str, Sequence[ArtifactRecord]]) -> tuple[OutputLayer, ...]:
    layers: dict[str, OutputLayer] = {}
    for owner, artifacts in rasters.items():
        for artifact in artifacts:
            suffix = PurePosixPath(artifact.key).name.removeprefix(owner)
            name = _layer_name(suffix)
            title = f"{artifact.metadata['processor']} · {artifact.name.rpartition('/')[2]}"
            layers.setdefault(suffix, OutputLayer(suffix=suffix[-100:], name=name, title=title))
    return tuple(layers.values())


def _layer_name(suffix: str) -> str:
    stem = PurePosixPath(suffix).stem.strip("_.-").lower()
    return stem.replace(".", "_")[:60].rstrip("_-") or "output"


def _style(
    installation: Installation, granules: Sequence[Granule], manifest: BundleManifest
) -> styles.LayerStyle:
    """The model's own style where the values are its classes, else colours or a ramp."""
    sampled = [installation.path_of(granule.artifact) for granule in granules[:_SAMPLED]]
    with rasterio.open(sampled[0]) as first:
        count, dtype, nodata = first.count, first.dtypes[0], first.nodata
    if count >= _RGB:
        return styles.rgb_style() if dtype == "uint8" else _stretched(sampled)
    values = [_values(path) for path in sampled]
    classes = {item.value for item in manifest.classes}
    if dtype == "uint8" and classes and all(set(np.unique(v)) <= classes for v in values):
        return styles.prediction_style(manifest)
    known = [(float(v.min()), float(v.max())) for v in values if v.size]
    low, high = min((a for a, _ in known), default=0.0), max((b for _, b in known), default=1.0)
    return {
        "kind": "ramp",
        "nodata": styles.FLOAT_NODATA if nodata is None else float(nodata),
        "unit": "",
        "stops": styles.ramp_stops((low, high)),
    }


def _stretched(sampled: Sequence[Path]) -> styles.LayerStyle:
    spread = [np.percentile(v, (2, 98)) for v in map(_values, sampled) if v.size]
    low = min((float(a) for a, _ in spread), default=0.0)
    high = max((float(b) for _, b in spread), default=1.0)
    return styles.rgb_style(minimum=low, maximum=max(high, low + 1e-9))


def _values(path: Path) -> NDArray[np.float64]:
    """Valid values of a raster's first band, decimated."""
    with rasterio.open(path) as dataset:
        scale = min(_SIDE / max(dataset.width, dataset.height), 1)
        shape = (max(round(dataset.height * scale), 1), max(round(dataset.width * scale), 1))
        band = dataset.read(1, out_shape=shape, resampling=Resampling.nearest, masked=True)
    valid: NDArray[np.float64] = band.compressed().astype(np.float64)
    return valid[np.isfinite(valid)]
