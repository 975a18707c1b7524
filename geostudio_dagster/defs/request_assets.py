"""The assets of one request: its plan, and the layers that it ends in."""

# No `from __future__ import annotations`: Dagster reads these signatures as they are.

from typing import Any

import dagster as dg

from geostudio_dagster.defs.metadata import map_url, published_metadata
from geostudio_dagster.defs.partitions import request_partitions
from geostudio_dagster.defs.resources import InstallationResource
from geostudio_dagster.defs.shard_assets import OWNERS, shard_settled
from geostudio_dagster.errors import Conflict, InvalidRequest, LeaseLost, NotFound
from geostudio_dagster.installation import Installation
from geostudio_dagster.pipeline import layers, plans
from geostudio_dagster.pipeline.launches import REQUEST_TAG
from geostudio_dagster.pipeline.stage import heartbeat
from geostudio_dagster.planning.admission import admit

GROUP = "requests"


def _plan_metadata(installation: Installation, planned: plans.PlannedRequest) -> dict[str, Any]:
    return {
        "tasks": planned.tasks,
        "shards": planned.shards,
        "model": planned.model,
        "tasks_geojson": planned.geojson_uri,
        "map": dg.MetadataValue.url(map_url(installation, planned.request_id)),
        **{f"estimated_{name}": value for name, value in planned.estimate.items()},
    }


def _plan(installation: Installation, request_id: str, run_id: str) -> plans.PlannedRequest:
    try:
        with heartbeat(installation, run_id):
            return plans.plan_request(installation, request_id)
    except (Conflict, NotFound, InvalidRequest) as error:
        raise dg.Failure(str(error), allow_retries=False) from error


@dg.asset(
    partitions_def=request_partitions,
    group_name=GROUP,
    owners=OWNERS,
    kinds={"python", "geojson"},
    code_version="1",
    description=(
        "A request cut into tasks and shards, with its footprint and estimate. A request that "
        "was planned already keeps its plan."
    ),
)
def request_plan(
    context: dg.AssetExecutionContext, installation: InstallationResource
) -> dg.MaterializeResult:
    """Plan one request."""
    place = installation.get()
    planned = _plan(place, context.partition_key, context.run.run_id)
    return dg.MaterializeResult(metadata=_plan_metadata(place, planned))


class PlanRequestConfig(dg.Config):
    """Either a whole new request, or the id of one that waits to be planned."""

    request: dict[str, Any] | None = None
    request_id: str | None = None


@dg.op(description="Accept a request (or take one that waits) and plan it.")
def plan_request(
    context: dg.OpExecutionContext, config: PlanRequestConfig, installation: InstallationResource
) -> str:
    """Accept, plan, and record the materialisation of ``request_plan`` for the request."""
    place = installation.get()
    if (config.request is None) == (config.request_id is None):
        raise dg.Failure("Give either request or request_id, not both.", allow_retries=False)
    if config.request is not None:
        try:
            request_id = admit(config.request, place.catalog, place.settings, owner="dagster").id
        except (InvalidRequest, Conflict) as error:
            raise dg.Failure(f"Refused: {error}", allow_retries=False) from error
    else:
        try:
            request_id = place.catalog.request(str(config.request_id)).id
        except NotFound as error:
            raise dg.Failure(str(error), allow_retries=False) from error
    context.instance.add_dynamic_partitions(request_partitions.name or "", [request_id])
    context.instance.add_run_tags(context.run.run_id, {REQUEST_TAG: request_id})
    planned = _plan(place, request_id, context.run.run_id)
    context.log_event(
        dg.AssetMaterialization(
            request_plan.key, partition=request_id, metadata=_plan_metadata(place, planned)
        )
    )
    return request_id


@dg.job(description="One way in: launch with a request's JSON as the op's config.")
def plan_request_job() -> None:
    """Accept and plan one request."""
    plan_request()


@dg.asset(
    partitions_def=request_partitions,
    deps=[
        request_plan,
        # Lineage only: custom mappings do not reach the daemon, so the request's own shards
        # are read from the catalog.
        dg.AssetDep(shard_settled, partition_mapping=dg.AllPartitionMapping()),
    ],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"geoserver", "geotiff"},
    code_version="1",
    pool="geoserver",
    check_specs=[
        dg.AssetCheckSpec(
            name="all_tasks_ok",
            asset="geoserver_layers",
            description="Every task of the request ended in a layer.",
        )
    ],
    description="The request's map layers with their styles, and with them its final status.",
)
def geoserver_layers(
    context: dg.AssetExecutionContext, installation: InstallationResource
) -> dg.MaterializeResult:
    """Publish one request."""
    place = installation.get()
    try:
        published = layers.publish_request(place, context.partition_key, context.run.run_id)
    except (Conflict, LeaseLost, NotFound, layers.PublishDeferred) as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    return dg.MaterializeResult(
        metadata=published_metadata(place, context.partition_key, published),
        check_results=[
            dg.AssetCheckResult(
                check_name="all_tasks_ok",
                passed=published.failed == 0,
                severity=dg.AssetCheckSeverity.WARN,
                metadata={"failed": published.failed},
            )
        ],
    )
