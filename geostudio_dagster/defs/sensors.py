"""What keeps Dagster and the catalog together: inbox, planning, dispatch, reconciliation.

Everything here happens at least once; the catalog makes a repetition harmless.
"""

# No `from __future__ import annotations`: Dagster reads these signatures as they are.

import dagster as dg

from geostudio_dagster import inbox
from geostudio_dagster.catalog import RequestRecord, ShardRecord
from geostudio_dagster.defs.jobs import publish_job, shard_job
from geostudio_dagster.defs.partitions import (
    ATTEMPT_TAG,
    MODEL_TAG,
    OWNER_TAG,
    PARTITION_TAG,
    REQUEST_TAG,
    SHARD_TAG,
    request_partitions,
    shard_partitions,
)
from geostudio_dagster.defs.reconciliation import reconcile, runs_of, why_over
from geostudio_dagster.defs.request_assets import plan_request_job
from geostudio_dagster.defs.resources import InstallationResource
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
    launches = []
    for request in catalog.requests_to_plan(PLANS_A_TICK):
        tags = {REQUEST_TAG: request.id}
        earlier = runs_of(context.instance, plan_request_job.name, tags)
        if any(why_over(context.instance, place, run.run_id) is None for run in earlier):
            continue
        if len(earlier) >= PLAN_ATTEMPTS:
            catalog.fail_request(
                request.id, f"Planning broke {len(earlier)} times; see run {earlier[0].run_id}."
            )
            continue
        launches.append(
            dg.RunRequest(
                run_key=f"plan:{request.id}:{len(earlier)}",
                run_config={"ops": {"plan_request": {"config": {"request_id": request.id}}}},
                tags=tags,
            )
        )
    return dg.SensorResult(run_requests=launches)


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
    room = place.settings.shards.max_live - len(catalog.live_shards())
    shards = catalog.shards_to_dispatch(now(), max(0, min(room, SHARDS_A_TICK)))
    requests = catalog.requests_to_publish(now(), PLANS_A_TICK)
    keys = sorted({shard.request_id for shard in shards} | {request.id for request in requests})
    owners = {key: catalog.request(key) for key in {shard.request_id for shard in shards}}
    launches = [
        *(_shard_run(shard, owners[shard.request_id]) for shard in shards),
        *(
            dg.RunRequest(
                run_key=f"publish:{request.id}:{request.publish_attempt}",
                job_name=publish_job.name,
                partition_key=request.id,
                tags={
                    PARTITION_TAG: request.id,
                    REQUEST_TAG: request.id,
                    ATTEMPT_TAG: str(request.publish_attempt),
                },
            )
            for request in requests
        ),
    ]
    catalog.mark_submitted([shard.key for shard in shards], now())
    return dg.SensorResult(
        run_requests=launches,
        dynamic_partitions_requests=[
            request_partitions.build_add_request(keys),
            shard_partitions.build_add_request([shard.key for shard in shards]),
        ]
        if launches
        else [],
    )


def _shard_run(shard: ShardRecord, request: RequestRecord) -> dg.RunRequest:
    return dg.RunRequest(
        run_key=f"{shard.key}:{shard.attempt}",
        job_name=shard_job.name,
        partition_key=shard.key,
        tags={
            PARTITION_TAG: shard.key,
            REQUEST_TAG: shard.request_id,
            SHARD_TAG: shard.key,
            ATTEMPT_TAG: str(shard.attempt),
            # What the run queue can limit by.
            OWNER_TAG: request.owner,
            MODEL_TAG: request.model_id,
            "dagster/priority": str(shard.priority),
        },
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
