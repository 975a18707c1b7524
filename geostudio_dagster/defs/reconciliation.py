"""Where catalog and runs disagree, and what is done about it.

Three things happen to a run behind the catalog's back: it ends without settling its shard
(killed, failed, a person ran only some stages), it dies so that Dagster does not notice (the
code server died with it), or it goes on although its request was cancelled.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import dagster as dg
from dagster import DagsterInstance, DagsterRun, RunRecord, RunsFilter

from geostudio_dagster.catalog import RequestRecord, RequestStatus, ShardRecord, ShardStatus
from geostudio_dagster.defs.jobs import publish_job, shard_job
from geostudio_dagster.installation import Installation
from geostudio_dagster.pipeline.launches import ATTEMPT_TAG, REQUEST_TAG, SHARD_TAG
from geostudio_dagster.pipeline.stage import now

log = logging.getLogger(__name__)

_LEASES_KEPT = dt.timedelta(days=1)
_LIVE = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


class _Chore(Protocol):
    """Looks after one shard or request, and tells what it did."""

    __name__: str

    def __call__(
        self, instance: DagsterInstance, installation: Installation, item: Any, /
    ) -> Iterable[str]: ...


def runs_of(instance: DagsterInstance, job: str, tags: Mapping[str, str]) -> list[DagsterRun]:
    """The runs of a job that carry all the tags, newest first."""
    return list(instance.get_runs(RunsFilter(job_name=job, tags=dict(tags)), limit=25))


def ended_runs(
    instance: DagsterInstance, installation: Installation, job: str, tags: Mapping[str, str]
) -> list[tuple[DagsterRun, str]] | None:
    """:func:`runs_of`, each with why it is over; None while one of them lives."""
    ended = []
    for run in runs_of(instance, job, tags):
        reason = why_over(instance, installation, run.run_id)
        if reason is None:
            return None
        ended.append((run, reason))
    return ended


def reconcile(instance: DagsterInstance, installation: Installation) -> list[str]:
    """Make catalog and runs agree; returns one sentence for each thing done.

    What cannot be dealt with is told of, and holds up nothing else.
    """
    catalog = installation.catalog
    publishing = partial(catalog.requests, RequestStatus.PUBLISHING_RESULTS, limit=500)
    chores: tuple[tuple[Callable[[], Sequence[Any]], _Chore], ...] = (
        (catalog.requests_to_stop, _stop_request),
        (catalog.live_shards, _check_shard),
        (publishing, _check_publication),
    )
    # A run that is asked for later shows by its start that it is long over.
    catalog.forget_leases(now() - _LEASES_KEPT)
    notes: list[str] = []
    for find, chore in chores:
        for item in find():
            try:
                notes += chore(instance, installation, item)
            except Exception as error:
                log.exception("%s of %s failed", chore.__name__, item)
                notes.append(f"{chore.__name__} failed: {type(error).__name__}: {error}")
    return notes


def _check_shard(
    instance: DagsterInstance, installation: Installation, shard: ShardRecord
) -> Iterator[str]:
    reason = _why_over(instance, installation, shard)
    if reason is None:
        return
    if shard.attempt >= installation.settings.shards.max_runs:
        verdict = f"Shard {shard.key} was tried {shard.attempt + 1} times in vain; {reason}."
        installation.catalog.fail_request(shard.request_id, verdict)
        yield f"request {shard.request_id} failed: {verdict}"
    else:
        # A submitted shard still names the run before; the one that never came has no name.
        run_id = shard.run_id or "" if shard.status == ShardStatus.RUNNING else ""
        delay = installation.settings.shards.retry_delay_s
        installation.catalog.shard_run_ended(shard.key, run_id, now(), delay)
        yield f"shard {shard.key}: {reason}; it is ready for another run"


def _why_over(
    instance: DagsterInstance, installation: Installation, shard: ShardRecord
) -> str | None:
    """Why nobody works on a shard that the catalog holds for live, or None if somebody does."""
    if shard.status == ShardStatus.RUNNING:
        return why_over(instance, installation, shard.run_id or "")
    tags = {SHARD_TAG: shard.key, ATTEMPT_TAG: str(shard.attempt)}
    runs = ended_runs(instance, installation, shard_job.name, tags)
    if runs is None:
        return None
    if runs:
        return runs[0][1]
    grace = dt.timedelta(seconds=installation.settings.shards.start_grace_s)
    return "no run appeared" if now() - (shard.submitted_at or now()) > grace else None


def why_over(instance: DagsterInstance, installation: Installation, run_id: str) -> str | None:
    """Why a run is over, or None while it lives.

    A run whose signs of life stopped is declared failed: Dagster does not notice when its code
    server died with it, and would wait for ever.
    """
    record = instance.get_run_record_by_id(run_id)
    if record is None:
        return f"run {run_id} is gone"
    run = record.dagster_run
    if run.is_finished:
        return f"run {run_id} ended as {run.status.value}"
    if run.status is dg.DagsterRunStatus.NOT_STARTED:
        return _why_never_queued(instance, installation, record)
    if run.status not in (dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING):
        return None  # waits in the queue, or is being launched: Dagster watches that
    return _why_silent(instance, installation, record)


def _why_silent(
    instance: DagsterInstance, installation: Installation, record: RunRecord
) -> str | None:
    run, run_id = record.dagster_run, record.dagster_run.run_id
    if instance.run_launcher.supports_check_run_worker_health:
        # Run monitoring asks the cluster; there, a stage may wait long for a pod in silence.
        return None
    shards = installation.settings.shards
    lease_until = installation.catalog.run_lease(run_id)
    if lease_until is not None:
        # One lease without a sign may be a slow catalog; two are nobody.
        silent_since, patience = lease_until, shards.lease_s
    else:
        silent_since, patience = _epoch(record.start_time), shards.start_grace_s
    if now() - silent_since <= dt.timedelta(seconds=patience):
        return None
    try:
        # It may only have been stalled (a machine that slept): it is not to wake up and go on.
        instance.run_launcher.terminate(run_id)
    except Exception:
        log.info("run %s cannot be stopped; it is out of reach", run_id, exc_info=True)
    instance.report_run_failed(run, f"No sign of life since {silent_since:%Y-%m-%d %H:%M:%S} UTC.")
    return f"run {run_id} gave no sign of life"


def _why_never_queued(
    instance: DagsterInstance, installation: Installation, record: RunRecord
) -> str | None:
    """A run is made first and queued next: who died in between left it for nobody."""
    run_id = record.dagster_run.run_id
    made = record.create_timestamp.replace(tzinfo=dt.UTC)
    if now() - made <= dt.timedelta(seconds=installation.settings.shards.start_grace_s):
        return None
    instance.report_run_canceled(record.dagster_run, "It was made, but never queued.")
    return f"run {run_id} was made, but never queued"


def _epoch(seconds: float | None) -> dt.datetime:
    return now() if seconds is None else dt.datetime.fromtimestamp(seconds, dt.UTC)


def _check_publication(
    instance: DagsterInstance, installation: Installation, request: RequestRecord
) -> Iterator[str]:
    reason = _why_publishing_is_over(instance, installation, request)
    if reason is not None:
        shards = installation.settings.shards
        installation.catalog.defer_publish(
            request.id,
            reason,
            now(),
            shards.retry_delay_s,
            shards.max_attempts,
            run_id=request.publish_run_id,
        )
        yield f"request {request.id}: publishing is over ({reason}) but not done"


def _why_publishing_is_over(
    instance: DagsterInstance, installation: Installation, request: RequestRecord
) -> str | None:
    if request.publish_run_id is not None:
        return why_over(instance, installation, request.publish_run_id)
    tags = {REQUEST_TAG: request.id, ATTEMPT_TAG: str(request.publish_attempt)}
    runs = ended_runs(instance, installation, publish_job.name, tags)
    return runs[0][1] if runs else None


def _stop_request(
    instance: DagsterInstance, installation: Installation, request: RequestRecord
) -> Iterator[str]:
    live = instance.get_runs(RunsFilter(tags={REQUEST_TAG: request.id}, statuses=_LIVE))
    for run in live:
        # A publication ends by itself; cut short, it would leave half a layer on GeoServer.
        publishes = run.run_id == request.publish_run_id
        if run.status is not dg.DagsterRunStatus.CANCELING and not publishes:
            _terminate(instance, run)
            yield f"request {request.id}: run {run.run_id} is being stopped"
    if not live:
        installation.catalog.finish_cancel(request.id)
        yield f"request {request.id} is stopped"


def _terminate(instance: DagsterInstance, run: DagsterRun) -> None:
    if run.status in (dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED):
        instance.report_run_canceling(run)
        instance.report_run_canceled(run)
    elif not instance.run_launcher.terminate(run.run_id):
        # Its worker is out of reach, so nothing of it runs that could still report back.
        instance.report_run_canceled(run)
