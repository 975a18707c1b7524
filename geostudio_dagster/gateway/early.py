"""Layers of a request that is not published yet, from the tasks that are done already."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from geostudio_dagster.catalog import ArtifactRecord, Catalog, LayerRecord
from geostudio_dagster.catalog.states import POSTPROCESS
from geostudio_dagster.models.bundle import BundleManifest
from geostudio_dagster.publish import styles
from geostudio_dagster.publish.layers import union, with_shares

# A map of the beginning is worth a few queries every other second, not thousands.
_LOOKED_AT = 300
_SHOWN = 100


def early_layers(catalog: Catalog, request_id: str) -> list[LayerRecord]:
    """Input and prediction of the first finished tasks; empty while there are none.

    Raises:
        NotFound: there is no such request.
    """
    request = catalog.request(request_id)
    done = list(_finished(catalog, request_id))
    manifest = BundleManifest.model_validate(catalog.model(request.model_id).manifest)
    figures = [artifacts["stats"].metadata for artifacts in done if "stats" in artifacts]
    masking = request.spec.get("masking")
    shown = "masked" if masking else "prediction"
    prediction = styles.masked_style(
        styles.prediction_style(manifest, _value_range(figures)),
        masking["kinds"] if masking else (),
    )
    wanted = (
        ("input_rgb", "Input", "rgb", styles.rgb_style()),
        ("pred", manifest.title or manifest.name, shown, with_shares(prediction, figures)),
    )
    layers = (
        _layer(request_id, name, title, style, [a[role] for a in done if role in a])
        for name, title, role, style in wanted
    )
    return [layer for layer in layers if layer is not None]


def _finished(catalog: Catalog, request_id: str) -> Iterator[dict[str, ArtifactRecord]]:
    """Artifacts by name of the first tasks whose pictures are there."""
    found = 0
    for task in catalog.tasks(request_id, limit=_LOOKED_AT):
        done = any(s.process_id == POSTPROCESS and s.status == "FINISHED" for s in task.steps)
        if done and found < _SHOWN:
            found += 1
            yield {artifact.name: artifact for artifact in catalog.artifacts(task.id)}


def _value_range(figures: Sequence[dict[str, Any]]) -> tuple[float, float] | None:
    known = [(f["min"], f["max"]) for f in figures if f.get("min") is not None]
    return (min(low for low, _ in known), max(high for _, high in known)) if known else None


def _layer(
    request_id: str,
    name: str,
    title: str,
    style: styles.LayerStyle,
    artifacts: Sequence[ArtifactRecord],
) -> LayerRecord | None:
    granules = [
        {"task_id": item.owner_id, "key": item.key, "bounds": item.metadata["bounds"]}
        for item in artifacts
        if "bounds" in item.metadata
    ]
    around = union(tuple(granule["bounds"]) for granule in granules)
    if around is None:
        return None
    content = "\n".join(f"{item.key} {item.sha256}" for item in artifacts)
    return LayerRecord(
        request_id=request_id,
        name=name,
        title=title,
        kind="raster",
        bounds=around,
        style=style,
        granules=tuple(granules),
        uri="",
        digest=hashlib.sha256(f"early {style}\n{content}".encode()).hexdigest(),
        published_at=dt.datetime.now(dt.UTC),
    )


def layers_of(catalog: Catalog, request_id: str) -> Sequence[LayerRecord]:
    """The published layers, or else what can be shown already.

    Raises:
        NotFound: there is no such request.
    """
    return catalog.layers(request_id) or early_layers(catalog, request_id)
