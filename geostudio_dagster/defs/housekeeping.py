"""The job that removes what is left over, and the schedule that launches it.

It is also who forgets Dagster's own runs and partition keys of requests that are long over.
"""

# No `from __future__ import annotations`: Dagster reads these signatures as they are.

import datetime as dt
import logging
from collections.abc import Iterator

import dagster as dg
from dagster import DagsterInstance, RunRecord, RunsFilter

from geostudio_dagster.defs.partitions import request_partitions, shard_partitions
from geostudio_dagster.defs.resources import InstallationResource
from geostudio_dagster.housekeeping import deleted_requests, remove_request, tidy
from geostudio_dagster.installation import Installation
from geostudio_dagster.pipeline.launches import REQUEST_TAG
from geostudio_dagster.pipeline.model_programs import make_missing_programs
from geostudio_dagster.pipeline.stage import now
from geostudio_dagster.publish.geoserver_rest import GeoServerError

log = logging.getLogger(__name__)

JOB = "housekeeping"
_RUNS = 1000
_OVER = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


@dg.op(pool="housekeeping", description="Removes what is left over, a bounded part at a time.")
def remove_leftovers(context: dg.OpExecutionContext, installation: InstallationResource) -> None:
    """One round."""
    place = installation.get()
    moment = now()
    notes = [
        *_deleted(context.instance, place, moment),
        *_old(context.instance, place, moment),
        *_own_runs(context.instance, place, moment),
        *tidy(place, moment),
    ]
    for note in notes:
        context.log.info(note)
    for name in make_missing_programs(place, limit=1):
        context.log.info("%s loads without TerraTorch from now on, if it can", name)
    context.add_output_metadata({"removed": len(notes)})


@dg.job(name=JOB, description="Removes deleted things after their time, and what was abandoned.")
def housekeeping_job() -> None:
    """Remove what is left over."""
    remove_leftovers()


@dg.schedule(
    job=housekeeping_job,
    cron_schedule="*/10 * * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="A round of housekeeping every ten minutes.",
)
def housekeeping_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Ask for a round, unless one is under way."""
    live = context.instance.get_runs(RunsFilter(job_name=JOB), limit=1)
    if live and not live[0].is_finished:
        return dg.SkipReason(f"run {live[0].run_id} is not over yet")
    return dg.RunRequest()


def _deleted(
    instance: DagsterInstance, installation: Installation, moment: dt.datetime
) -> Iterator[str]:
    """Requests that were deleted, with all that was made of them."""
    for request in deleted_requests(installation, moment):
        try:
            if _forget_runs(instance, installation, request.id, before=None):
                remove_request(installation, request)
                yield f"request {request.id}"
        except Exception as error:
            log.exception("request %s cannot be removed now", request.id)
            yield f"request {request.id} stays: {type(error).__name__}: {error}"
            if isinstance(error, GeoServerError) and error.retryable:
                return  # it is away, for the others too; there is a next round


def _old(
    instance: DagsterInstance, installation: Installation, moment: dt.datetime
) -> Iterator[str]:
    """Runs and partition keys of requests that are over; the requests themselves stay."""
    settings = installation.settings.housekeeping
    before = moment - dt.timedelta(days=settings.run_days)
    keys = list(instance.get_dynamic_partitions(str(request_partitions.name)))
    left = settings.items
    for request_id in installation.catalog.over_requests(keys, before):
        if left == 0:
            return
        if _forget_runs(instance, installation, request_id, before=before):
            left -= 1
            yield f"runs of request {request_id}"


def _forget_runs(
    instance: DagsterInstance,
    installation: Installation,
    request_id: str,
    before: dt.datetime | None,
) -> bool:
    """Remove a request's runs, then its keys; False where a run is not over, or is recent."""
    records = instance.get_run_records(RunsFilter(tags={REQUEST_TAG: request_id}), limit=_RUNS)
    if any(_is_needed(record, before) for record in records):
        return False
    for record in records:
        _forget_run(instance, record.dagster_run.run_id)
    for shard in installation.catalog.shards(request_id):
        _forget_key(instance, str(shard_partitions.name), shard.key)
    # Last, for this is what the request is found by.
    if len(records) < _RUNS:
        _forget_key(instance, str(request_partitions.name), request_id)
    return len(records) < _RUNS


def _is_needed(record: RunRecord, before: dt.datetime | None) -> bool:
    made = record.create_timestamp.replace(tzinfo=dt.UTC)
    return not record.dagster_run.is_finished or (before is not None and made > before)


def _own_runs(
    instance: DagsterInstance, installation: Installation, moment: dt.datetime
) -> Iterator[str]:
    settings = installation.settings.housekeeping
    before = moment - dt.timedelta(days=settings.run_days)
    old = RunsFilter(job_name=JOB, statuses=_OVER, created_before=before)
    for run in instance.get_runs(old, limit=settings.items):
        _forget_run(instance, run.run_id)
        yield f"run {run.run_id}"


def _forget_run(instance: DagsterInstance, run_id: str) -> None:
    instance.compute_log_manager.delete_logs(prefix=[run_id])
    instance.delete_run(run_id)


def _forget_key(instance: DagsterInstance, definition: str, key: str) -> None:
    if instance.has_dynamic_partition(definition, key):
        instance.delete_dynamic_partition(definition, key)
