"""What keeps Dagster and the catalog together: inbox, planning, dispatch, reconciliation.

Everything here happens at least once; the catalog makes a repetition harmless.
"""

# No `from __future__ import annotations`: Dagster reads these signatures as they are.

import dagster as dg

from geostudio_dagster import inbox
from geostudio_dagster.defs.jobs import publish_job, shard_job
from geostudio_dagster.defs.launching import run_request
from geostudio_dagster.defs.partitions import request_partitions, shard_partitions
from geostudio_dagster.defs.reconciliation import ended_runs, reconcile
from geostudio_dagster.defs.request_assets import plan_request_job
from geostudio_dagster.defs.resources import InstallationResource
from geostudio_dagster.pipeline import launches
from geostudio_dagster.pipeline.launches import REQUEST_TAG
from geostudio_dagster.pipeline.stage import now

TICK_S = 5  # the daemon's sensor loop runs on a five-second grid
PLANS_A_TICK = 20
SHARDS_A_TICK = 200
PLAN_ATTEMPTS = 3


@dg.sensor(
    name="inbox",
    minimum_interval_seconds=TICK_S,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Takes request files from the inbox folder; each goes to accepted/ or rejected/.",
)
def inbox_sensor(
    context: dg.SensorEvaluationContext, installation: InstallationResource
) -> dg.SkipReason:
    """Admit what was dropped; the planner launches it in its own tick."""
    place = installation.get()
    outcomes = inbox.take_all(place)
    for outcome in outcomes:
        context.log.info("%s: %s", outcome.file, outcome.verdict)
    return dg.SkipReason(f"{len(outcomes)} request files taken from {place.settings.inbox}.")


@dg.sensor(
    name="request_planner",
    job=plan_request_job,
    minimum_interval_seconds=TICK_S,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Launches planning of every request that waits for it.",
)
def request_planner(
    context: dg.SensorEvaluationContext, installation: InstallationResource
) -> dg.SensorResult:
    """One planning run at a time for each waiting request, three tries in all."""
    place = installation.get()
    catalog = place.catalog
    wanted = []
    for request in catalog.requests_to_plan(PLANS_A_TICK):
        if launches.is_being_planned(place, request.id):
            continue
        earlier = ended_runs(context.instance, place, launches.PLAN_JOB, {REQUEST_TAG: request.id})
        if earlier is None:
            continue
        if len(earlier) >= PLAN_ATTEMPTS:
            last, _ = earlier[0]
            catalog.fail_request(
                request.id, f"Planning broke {len(earlier)} times; see run {last.run_id}."
            )
            continue
        wanted.append(run_request(launches.planning(request.id, len(earlier))))
    return dg.SensorResult(run_requests=wanted)


@dg.sensor(
    name="shard_dispatcher",
    jobs=[shard_job, publish_job],
    minimum_interval_seconds=TICK_S,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Launches a run for every shard that is ready and every request to publish.",
)
def shard_dispatcher(
    context: dg.SensorEvaluationContext, installation: InstallationResource
) -> dg.SensorResult:
    """Partition keys first, then runs; a key that is there already stays as it is."""
    place = installation.get()
    catalog = place.catalog
    requests = catalog.requests_to_publish(now(), PLANS_A_TICK)
    shards = launches.take_shards(place, SHARDS_A_TICK)
    wanted = [*shards, *map(launches.publishing, requests)]
    return dg.SensorResult(
        run_requests=[run_request(launch) for launch in wanted],
        dynamic_partitions_requests=[
            request_partitions.build_add_request(
                sorted({launch.tags[REQUEST_TAG] for launch in wanted})
            ),
            shard_partitions.build_add_request([str(launch.partition) for launch in shards]),
        ]
        if wanted
        else [],
    )


@dg.sensor(
    name="reconciler",
    minimum_interval_seconds=TICK_S,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Brings catalog and runs back together after kills, lost workers and cancels.",
)
def reconciler(
    context: dg.SensorEvaluationContext, installation: InstallationResource
) -> dg.SkipReason:
    """Act on every shard and request whose run is over, lost or no longer wanted."""
    notes = reconcile(context.instance, installation.get())
    for note in notes:
        context.log.info(note)
    return dg.SkipReason("; ".join(notes) or "catalog and runs agree")
