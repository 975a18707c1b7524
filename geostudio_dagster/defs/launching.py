"""A launch of the platform's as a sensor asks Dagster for it."""

from __future__ import annotations

import dagster as dg

from geostudio_dagster.pipeline.launches import Launch


def run_request(launch: Launch) -> dg.RunRequest:
    """The launch as a run request."""
    return dg.RunRequest(
        run_key=launch.run_key,
        job_name=launch.job,
        partition_key=launch.partition,
        run_config=dict(launch.run_config),
        tags=dict(launch.tags),
    )
