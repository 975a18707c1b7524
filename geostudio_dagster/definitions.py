"""What Dagster loads. No work and no heavy import happens here."""

from __future__ import annotations

import dagster as dg

from geostudio_dagster.importing import importing

with importing("geostudio_dagster.defs"):
    from geostudio_dagster.defs.housekeeping import housekeeping_job, housekeeping_schedule
    from geostudio_dagster.defs.jobs import publish_job, shard_job
    from geostudio_dagster.defs.onboarding import onboard_bundle_job, onboarder
    from geostudio_dagster.defs.processor_registration import register_processor_job
    from geostudio_dagster.defs.processor_watcher import processor_watcher
    from geostudio_dagster.defs.request_assets import (
        geoserver_layers,
        plan_request_job,
        request_plan,
    )
    from geostudio_dagster.defs.resources import InstallationResource
    from geostudio_dagster.defs.sensors import (
        inbox_sensor,
        reconciler,
        request_planner,
        shard_dispatcher,
    )
    from geostudio_dagster.defs.shard_assets import (
        postprocessed,
        predictions_asset,
        processor_outputs,
        shard_settled,
        tiles,
    )
    from geostudio_dagster.defs.webhooks import webhook_deliveries
    from geostudio_dagster.settings import Settings


def _executor(settings: Settings) -> dg.ExecutorDefinition:
    if settings.execution == "k8s":
        # dagster-k8s takes 1.8 s to import; a laptop need not pay for it.
        from dagster_k8s import k8s_job_executor

        return k8s_job_executor
    # One process per shard: the model loads once, and a step costs milliseconds.
    return dg.in_process_executor


@dg.definitions
def defs() -> dg.Definitions:
    """The platform's code location."""
    settings = Settings()
    return dg.Definitions(
        assets=[
            request_plan,
            tiles,
            predictions_asset(settings),
            postprocessed,
            processor_outputs,
            shard_settled,
            geoserver_layers,
        ],
        jobs=[
            plan_request_job,
            shard_job,
            publish_job,
            register_processor_job,
            onboard_bundle_job,
            housekeeping_job,
        ],
        sensors=[
            inbox_sensor,
            request_planner,
            shard_dispatcher,
            reconciler,
            processor_watcher,
            webhook_deliveries,
            onboarder,
        ],
        schedules=[housekeeping_schedule],
        resources={"installation": InstallationResource()},
        executor=_executor(settings),
    )
