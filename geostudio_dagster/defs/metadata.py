"""What a materialisation shows in the UI."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import dagster as dg

from geostudio_dagster.catalog import ModelRecord
from geostudio_dagster.installation import Installation
from geostudio_dagster.pipeline.layers import Published
from geostudio_dagster.pipeline.stage import StageReport, TaskOutcome
from geostudio_dagster.signing import map_link

_SAMPLE = 20


def stage_metadata(
    installation: Installation, model: ModelRecord, request_id: str, report: StageReport
) -> dict[str, Any]:
    """Counts, pixels, seconds by stage, addresses, errors and the model, for one shard stage."""
    pixels = report.total("pixels")
    metadata: dict[str, Any] = {
        "tasks": len(report.outcomes),
        "finished": report.count("finished"),
        "failed": report.count("failed"),
        "to_retry": report.count("retry"),
        "cancelled": report.count("cancelled"),
        "seconds": round(report.seconds, 3),
        "model": f"{model.name}@{model.version}",
        "model_digest": model.digest,
        "map": dg.MetadataValue.url(map_url(installation, request_id)),
    }
    if pixels:
        metadata["mpx"] = round(pixels / 1e6, 3)
        metadata["mpx_per_second"] = round(pixels / 1e6 / max(report.seconds, 1e-9), 3)
    for name, seconds in sorted(_seconds_by_stage(report).items()):
        metadata[f"seconds_{name}"] = round(seconds, 3)
    if addresses := _addresses(installation, report):
        metadata["uris"] = dg.MetadataValue.md("\n".join(f"- `{uri}`" for uri in addresses))
    if sample := next(iter(report.finished), None):
        metadata.update(_place(sample))
    if errors := _errors(report):
        metadata["errors"] = dg.MetadataValue.md("\n".join(errors))
    return metadata


def script_metadata(report: StageReport) -> dict[str, Any]:
    """What the request's scripts said, task by task, and how they were isolated."""
    scripts = {
        outcome.task.id: outcome.metrics["scripts"]
        for outcome in report.finished[:_SAMPLE]
        if outcome.metrics.get("scripts")
    }
    isolation = {str(outcome.metrics.get("isolation")) for outcome in report.finished}
    return {
        "scripts": dg.MetadataValue.json(scripts),
        "isolation": ", ".join(sorted(isolation)),
    }


def picture(png: bytes) -> dg.MarkdownMetadataValue:
    """A PNG that the UI renders in place."""
    return dg.MetadataValue.md(
        f"![preview](data:image/png;base64,{base64.b64encode(png).decode()})"
    )


def map_url(installation: Installation, request_id: str) -> str:
    """Address of the request's map page, for a browser; it expires."""
    return map_link(installation.settings, request_id)


def published_metadata(
    installation: Installation, request_id: str, published: Published
) -> dict[str, Any]:
    """What the UI shows of a published request."""
    return {
        "status": published.status,
        "layers": dg.MetadataValue.md("\n".join(f"- `{uri}`" for uri in published.uris)),
        "granules": published.granules,
        "bounds": str(published.bounds),
        "finished": published.finished,
        "failed": published.failed,
        "map": dg.MetadataValue.url(map_url(installation, request_id)),
    }


def _seconds_by_stage(report: StageReport) -> Mapping[str, float]:
    total: dict[str, float] = {}
    for outcome in report.outcomes:
        for name, seconds in dict(outcome.metrics.get("stages") or {}).items():
            total[name] = total.get(name, 0.0) + float(seconds)
    return total


def _addresses(installation: Installation, report: StageReport) -> list[str]:
    artifacts = [artifact for outcome in report.finished for artifact in outcome.artifacts]
    return [installation.uri_of(artifact) for artifact in artifacts[:_SAMPLE]]


def _place(outcome: TaskOutcome) -> dict[str, Any]:
    place: dict[str, Any] = {}
    for artifact in outcome.artifacts:
        if "crs" in artifact.metadata:
            place["crs"] = artifact.metadata["crs"]
        if "bounds" in artifact.metadata:
            place["bounds"] = str(artifact.metadata["bounds"])
    return place


def _errors(report: StageReport) -> list[str]:
    failed = [outcome for outcome in report.outcomes if outcome.error]
    return [f"- `{outcome.task.id}`: {outcome.error}" for outcome in failed[:_SAMPLE]]
