"""What is to be launched in Dagster, said without Dagster: for its sensors and for the gateway.

Whoever launches takes the shards first, so that no two do so for the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from geostudio_dagster.catalog import RequestRecord, ShardRecord
from geostudio_dagster.catalog.card_records import OnboardingRecord
from geostudio_dagster.catalog.heartbeats import planner_lease
from geostudio_dagster.installation import Installation
from geostudio_dagster.pipeline.stage import now

PLAN_JOB = "plan_request_job"
SHARD_JOB = "shard_job"
PUBLISH_JOB = "publish_job"
ONBOARD_JOB = "onboard_bundle_job"
REQUEST_PARTITIONS = "requests"
SHARD_PARTITIONS = "shards"

REQUEST_TAG = "geostudio/request"
SHARD_TAG = "geostudio/shard"
# Set by whoever launches for the platform. A run without it was launched by a person, who wants
# the work redone.
ATTEMPT_TAG = "geostudio/attempt"
MODEL_TAG = "geostudio/model"
OWNER_TAG = "geostudio/owner"
# A tune or a model that is made into a bundle, and how often that was asked for.
ONBOARDING_TAG = "geostudio/onboarding"
# A run request that carries Dagster's own tag is taken as resolved. Without it, every request
# of a tick would load all keys of the definition to look for its own.
PARTITION_TAG = "dagster/partition"


@dataclass(frozen=True, slots=True)
class Launch:
    """One run to be asked for. The same ``run_key`` is the same run."""

    job: str
    run_key: str
    tags: Mapping[str, str]
    partition: str | None = None
    run_config: Mapping[str, Any] = field(default_factory=dict)


def planning(request_id: str, attempt: int) -> Launch:
    """The run that plans a request."""
    return Launch(
        PLAN_JOB,
        f"plan:{request_id}:{attempt}",
        {REQUEST_TAG: request_id},
        run_config={"ops": {"plan_request": {"config": {"request_id": request_id}}}},
    )


def publishing(request: RequestRecord) -> Launch:
    """The run that publishes a request."""
    return Launch(
        PUBLISH_JOB,
        f"publish:{request.id}:{request.publish_attempt}",
        {
            PARTITION_TAG: request.id,
            REQUEST_TAG: request.id,
            ATTEMPT_TAG: str(request.publish_attempt),
        },
        request.id,
    )


def onboarding(wish: OnboardingRecord, attempt: int) -> Launch:
    """The run that makes a bundle of a tune or a model."""
    config = {"kind": wish.kind, "id": wish.id}
    return Launch(
        ONBOARD_JOB,
        f"onboard:{wish.id}:{wish.generation}:{attempt}",
        {ONBOARDING_TAG: f"{wish.id}:{wish.generation}", OWNER_TAG: wish.owner},
        run_config={"ops": {"onboard_bundle": {"config": config}}},
    )


def take_shards(
    installation: Installation, limit: int, request_id: str | None = None
) -> list[Launch]:
    """Take shards that are due, of one request or of all, and say how they are run.

    They count as handed to runs from now on: launch them, or :func:`give_back`.
    """
    catalog = installation.catalog
    room = installation.settings.shards.max_live - len(catalog.live_shards())
    due = catalog.shards_to_dispatch(now(), max(0, min(room, limit)), request_id)
    taken = set(catalog.mark_submitted([shard.key for shard in due], now()))
    shards = [shard for shard in due if shard.key in taken]
    requests = {key: catalog.request(key) for key in {shard.request_id for shard in shards}}
    return [_of_shard(shard, requests[shard.request_id]) for shard in shards]


def give_back(installation: Installation, launches: Sequence[Launch]) -> None:
    """Shards that were taken, but whose runs could not be asked for, are due again."""
    for launch in launches:
        if launch.job == SHARD_JOB:
            installation.catalog.shard_run_ended(str(launch.partition), "", now(), 0.0)


def _of_shard(shard: ShardRecord, request: RequestRecord) -> Launch:
    return Launch(
        SHARD_JOB,
        f"{shard.key}:{shard.attempt}",
        {
            PARTITION_TAG: shard.key,
            REQUEST_TAG: shard.request_id,
            SHARD_TAG: shard.key,
            ATTEMPT_TAG: str(shard.attempt),
            # What the run queue can limit by.
            OWNER_TAG: request.owner,
            MODEL_TAG: request.model_id,
            "dagster/priority": str(shard.priority),
        },
        shard.key,
    )


def is_being_planned(installation: Installation, request_id: str) -> bool:
    """Whether somebody outside of Dagster plans and launches the request just now."""
    until = installation.catalog.run_lease(planner_lease(request_id))
    return until is not None and until > now()
