"""A run of one processor alone, launched from its own definition."""

# No `from __future__ import annotations`: Dagster reads these signatures as they are.

from typing import Any

import dagster as dg

from geostudio_dagster.defs.metadata import picture
from geostudio_dagster.defs.processor_pods import pod_runner
from geostudio_dagster.errors import InvalidRequest, NotFound, TaskError
from geostudio_dagster.installation import Installation
from geostudio_dagster.pipeline import alone
from geostudio_dagster.raster.preview import preview_png


def run_alone(
    context: dg.AssetExecutionContext, installation: Installation, processor_id: str
) -> dg.MaterializeResult:
    """Run the processor on the task that the run's config names.

    Raises:
        Failure: with the sentence that a user reads.
    """
    config: dict[str, Any] = context.op_execution_context.op_config
    try:
        done = alone.run_alone(
            installation,
            processor_id,
            config["task"],
            config.get("parameters") or {},
            context.run.run_id,
            runner=pod_runner(context, installation.settings),
        )
    except (InvalidRequest, NotFound, TaskError) as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    return dg.MaterializeResult(metadata=_metadata(installation, config["task"], done))


def _metadata(installation: Installation, task_id: str, done: alone.AloneRun) -> dict[str, Any]:
    addresses = [f"- `{installation.uri_of(artifact)}`" for artifact in done.artifacts]
    metadata: dict[str, Any] = {
        "task": task_id,
        "version": done.processor.version,
        "sha256": done.processor.sha256,
        "isolation": done.told["isolation"],
        "seconds": done.told["seconds"],
        "printed": dg.MetadataValue.json(done.told["printed"]),
        "artifacts": dg.MetadataValue.json([artifact.name for artifact in done.artifacts]),
        "uris": dg.MetadataValue.md("\n".join(addresses)),
    }
    for artifact in done.artifacts:
        if artifact.metadata.get("kind") == "raster":
            metadata["preview"] = picture(preview_png(installation.path_of(artifact)))
            break
    return metadata
