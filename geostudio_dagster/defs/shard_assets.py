"""The assets of one shard: tiles, predictions, postprocessed, processor_outputs, shard_settled."""

# No `from __future__ import annotations`: Dagster reads these signatures as they are.

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import dagster as dg
from dagster._core.storage.tags import (
    ASSET_RESUME_RETRY_TAG,
    RESUME_RETRY_TAG,
    RETRY_NUMBER_TAG,
)

from geostudio_dagster.catalog import ModelRecord, Position, RequestStatus
from geostudio_dagster.catalog.states import CONNECTOR, POSTPROCESS, PREDICTION
from geostudio_dagster.defs.kubernetes import prediction_pod_config
from geostudio_dagster.defs.metadata import (
    map_url,
    picture,
    published_metadata,
    script_metadata,
    stage_metadata,
)
from geostudio_dagster.defs.partitions import shard_partitions
from geostudio_dagster.defs.processor_assets import processor_materialization
from geostudio_dagster.defs.processor_pods import pod_runner
from geostudio_dagster.defs.resources import InstallationResource
from geostudio_dagster.errors import Conflict, LeaseLost, NotFound
from geostudio_dagster.installation import Installation
from geostudio_dagster.pipeline import (
    deliverables,
    layers,
    postprocessing,
    predicting,
    processing,
    scenes,
)
from geostudio_dagster.pipeline.cancelling import ended_if_cancelled
from geostudio_dagster.pipeline.launches import ATTEMPT_TAG
from geostudio_dagster.pipeline.stage import StageReport, Work, run_stage, sign_of_life
from geostudio_dagster.prediction.turns import at_once
from geostudio_dagster.settings import Settings

GROUP = "inference"
OWNERS = ["team:geostudio"]
_FEW_TASKS = 50  # of a request that its last shard publishes itself


def _check(asset: str, name: str, description: str) -> dg.AssetCheckSpec:
    return dg.AssetCheckSpec(name=name, asset=asset, description=description)


def _all_tasks_ok(asset: str) -> dg.AssetCheckSpec:
    return _check(asset, "all_tasks_ok", "No task of the shard failed in this stage.")


def _open_shard(
    context: dg.AssetExecutionContext, installation: Installation, process_id: str | None = None
) -> ModelRecord:
    """Take the shard for this run; a run that a person launched has the step done again."""
    catalog = installation.catalog
    sign_of_life(installation, context.run.run_id)
    try:
        if process_id is not None and _asked_for_by_a_person(context.run):
            catalog.reopen(context.partition_key, process_id, context.run.run_id)
        shard = catalog.begin_shard_run(context.partition_key, context.run.run_id)
    except (Conflict, NotFound) as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    return catalog.model(catalog.request(shard.request_id).model_id)


def _asked_for_by_a_person(run: dg.DagsterRun) -> bool:
    """Whether a person launched the run, or launched it again: such work is done anew.

    A re-execution carries all tags of the run that it repeats, the dispatcher's among them; one
    that only resumes after a failure goes on with what is left.
    """
    if ATTEMPT_TAG not in run.tags:
        return True
    resumes = {RESUME_RETRY_TAG, ASSET_RESUME_RETRY_TAG, RETRY_NUMBER_TAG} & run.tags.keys()
    return run.parent_run_id is not None and not resumes


def _stage_result(
    context: dg.AssetExecutionContext,
    installation: Installation,
    model: ModelRecord,
    report: StageReport,
    **more: Any,
) -> dg.MaterializeResult:
    request_id = context.partition_key.split("/")[0]
    bad = report.count("failed") + report.count("retry")
    return dg.MaterializeResult(
        metadata={**stage_metadata(installation, model, request_id, report), **more},
        check_results=[
            dg.AssetCheckResult(
                check_name="all_tasks_ok",
                passed=bad == 0,
                severity=dg.AssetCheckSeverity.WARN,
                metadata={"failed": bad, "tasks": len(report.outcomes)},
            )
        ],
    )


def _stoppable(
    context: dg.AssetExecutionContext, installation: Installation
) -> AbstractContextManager[None]:
    """Within, a cancellation ends this process if need be, where it is the run's own."""
    if context.instance.is_ephemeral:
        return nullcontext()  # the run is only in the memory of a process that goes on
    return ended_if_cancelled(installation, context.partition_key.split("/")[0])


def _run(
    context: dg.AssetExecutionContext,
    installation: Installation,
    process_id: str,
    work: Work,
    workers: int = 1,
    *,
    reopens: bool = True,
) -> tuple[ModelRecord, StageReport]:
    model = _open_shard(context, installation, process_id if reopens else None)
    shard, run_id = context.partition_key, context.run.run_id
    with _stoppable(context, installation):
        report = run_stage(installation, shard, run_id, process_id, work, workers=workers)
    context.log.info(
        "%d of %d tasks finished %s in %.1f s",
        report.count("finished"),
        len(report.outcomes),
        process_id,
        report.seconds,
    )
    return model, report


def _run_chain(
    context: dg.AssetExecutionContext, installation: Installation, position: Position
) -> StageReport | None:
    """The processors that the request has at a position; None if it has none there."""
    request_id = context.partition_key.split("/")[0]
    chain = processing.chain_of(installation, request_id, position)
    if not chain:
        return None
    _open_shard(context, installation, processing.STEP_OF[position])
    runner = pod_runner(context, installation.settings)
    shard, run_id = context.partition_key, context.run.run_id
    # Whoever waits for a pod hears of a cancellation by itself, and deletes the pod first.
    with nullcontext() if runner else _stoppable(context, installation):
        report = processing.run_chain(installation, shard, run_id, position, runner)
    context.log.info(
        "%d of %d tasks went through %s in %.1f s",
        report.count("finished"),
        len(report.outcomes),
        " > ".join(pin.processor.label for pin in chain),
        report.seconds,
    )
    for pin in chain:
        # The processor's own page shows its runs, whatever request they were for.
        context.log_event(processor_materialization(pin, context.partition_key, report))
    return report


@dg.asset(
    partitions_def=shard_partitions,
    # Lineage only: a shard names its request, and the plan is read from the catalog.
    deps=[dg.AssetDep("request_plan", partition_mapping=dg.AllPartitionMapping())],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"python", "geotiff"},
    code_version="1",
    check_specs=[_all_tasks_ok("tiles")],
    description=(
        "The scenes of a shard's tasks, in storage or checked in place: readable, georeferenced, "
        "with the bands that the model needs."
    ),
)
def tiles(
    context: dg.AssetExecutionContext, installation: InstallationResource
) -> dg.MaterializeResult:
    """Bring the input pixels of each task."""
    place = installation.get()
    model, report = _run(
        context, place, CONNECTOR, scenes.bring_scene, workers=scenes.DOWNLOADS_AT_ONCE
    )
    return _stage_result(context, place, model, report)


def predictions_asset(settings: Settings) -> dg.AssetsDefinition:
    """The ``predictions`` asset, with the scheduling tags that the settings ask for."""

    @dg.asset(
        name="predictions",
        partitions_def=shard_partitions,
        deps=[tiles],
        group_name=GROUP,
        owners=OWNERS,
        kinds={"pytorch", "geotiff"},
        code_version="1",
        pool="gpu",
        op_tags={"dagster-k8s/config": prediction_pod_config(settings.kubernetes)},
        check_specs=[
            _all_tasks_ok("predictions"),
            _check("predictions", "valid_cog", "Every output is a valid cloud-optimised GeoTIFF."),
            _check("predictions", "nodata_fraction", "Some pixels of every output are valid."),
        ],
        description="The model's output on each task's grid, as a COG, made by streaming patches.",
    )
    def predictions(
        context: dg.AssetExecutionContext, installation: InstallationResource
    ) -> dg.MaterializeResult:
        """Run the model over each task's scene."""
        place = installation.get()
        model, report = _run(
            context,
            place,
            PREDICTION,
            predicting.predict_task,
            workers=at_once(),
        )
        preview = predicting.preview_of(place, report)
        more = {"preview": picture(preview)} if preview else {}
        result = _stage_result(context, place, model, report, **more)
        return result._replace(
            check_results=[*(result.check_results or []), *_prediction_checks(report)]
        )

    return predictions


def _prediction_checks(report: StageReport) -> Iterator[dg.AssetCheckResult]:
    invalid = {
        outcome.task.id: str(outcome.metrics["cog_errors"])
        for outcome in report.finished
        if outcome.metrics.get("cog_errors")
    }
    yield dg.AssetCheckResult(
        check_name="valid_cog",
        passed=not invalid,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={"outputs": len(report.finished), "invalid": str(invalid)},
    )
    fractions = [float(o.metrics.get("nodata_fraction", 0.0)) for o in report.finished]
    yield dg.AssetCheckResult(
        check_name="nodata_fraction",
        passed=all(fraction < 1.0 for fraction in fractions),
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "largest": max(fractions, default=0.0),
            "mean": sum(fractions) / max(len(fractions), 1),
            "not_finite": sum(int(o.metrics.get("not_finite", 0)) for o in report.finished),
        },
    )


@dg.asset(
    partitions_def=shard_partitions,
    deps=["predictions"],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"python", "geotiff"},
    code_version="1",
    check_specs=[_all_tasks_ok("postprocessed")],
    description=(
        "What people look at beside the prediction: the input in colour, a picture, statistics."
    ),
)
def postprocessed(
    context: dg.AssetExecutionContext, installation: InstallationResource
) -> dg.MaterializeResult:
    """Make the input in colour, and the prediction's picture and statistics."""
    place = installation.get()
    early = _run_chain(context, place, Position.BEFORE_POSTPROCESS)
    model, report = _run(
        context,
        place,
        POSTPROCESS,
        postprocessing.postprocess_task,
        workers=postprocessing.at_once(),
        reopens=early is None,
    )
    preview = postprocessing.preview_of(place, report)
    more = {"preview": picture(preview)} if preview else {}
    if early is not None:
        report = early.followed_by(report)
        more |= script_metadata(early)
    return _stage_result(context, place, model, report, **more)


@dg.asset(
    partitions_def=shard_partitions,
    deps=[postprocessed],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"python"},
    code_version="1",
    check_specs=[_all_tasks_ok("processor_outputs")],
    description=(
        "What the request's own processors made of each output: rasters, vectors, tables and "
        "what the scripts reported. Without processors it passes everything on."
    ),
)
def processor_outputs(
    context: dg.AssetExecutionContext, installation: InstallationResource
) -> dg.MaterializeResult:
    """Run the request's chain of processors on each task's outputs."""
    place = installation.get()
    report = _run_chain(context, place, Position.AFTER_POSTPROCESS)
    if report is None:
        model = _open_shard(context, place)
        return _stage_result(context, place, model, StageReport((), 0.0), processors=0)
    shard = place.catalog.shard(context.partition_key)
    model = place.catalog.model(place.catalog.request(shard.request_id).model_id)
    preview = processing.preview_of(place, report)
    more = {"preview": picture(preview)} if preview else {}
    return _stage_result(context, place, model, report, **script_metadata(report), **more)


@dg.asset(
    partitions_def=shard_partitions,
    deps=[processor_outputs],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"python"},
    code_version="1",
    check_specs=[_all_tasks_ok("shard_settled")],
    description=(
        "Every task of the shard is over: its archive and STAC item are written, or its error "
        "is recorded. Fails while tasks are left that another attempt may finish."
    ),
)
def shard_settled(
    context: dg.AssetExecutionContext, installation: InstallationResource
) -> Iterator[dg.MaterializeResult]:
    """Package what is finished and close the shard; the last one of a small request ends it."""
    place = installation.get()
    model = _open_shard(context, place)
    packaged = deliverables.package_shard(place, context.partition_key, context.run.run_id)
    settlement = deliverables.settle(place, context.partition_key, context.run.run_id)
    counts: Mapping[str, Any] = {
        "finished": settlement.finished,
        "failed": settlement.failed,
        "stopped": settlement.stopped,
        "left": settlement.waiting,
        "packaged": packaged,
        "model": f"{model.name}@{model.version}",
        "map": dg.MetadataValue.url(map_url(place, context.partition_key.split("/")[0])),
    }
    if settlement.retry_at is not None:
        raise dg.Failure(
            f"{settlement.waiting} tasks of {context.partition_key} are left for another attempt "
            f"at {settlement.retry_at:%H:%M:%S} UTC.",
            metadata=dict(counts),
            allow_retries=False,
        )
    yield dg.MaterializeResult(
        metadata=dict(counts),
        check_results=[
            dg.AssetCheckResult(
                check_name="all_tasks_ok",
                passed=settlement.failed == 0,
                severity=dg.AssetCheckSeverity.WARN,
                metadata={"failed": settlement.failed},
            )
        ],
    )
    _publish_at_once(context, place, context.partition_key.split("/")[0])


def _publish_at_once(
    context: dg.AssetExecutionContext, installation: Installation, request_id: str
) -> None:
    """Publish a small request whose last shard this was: a run of its own would take seconds.

    What is published to GeoServer waits for that run, whose pool spares the server.
    """
    request = installation.catalog.request(request_id)
    due = request.status == RequestStatus.PUBLISHING_RESULTS and request.publish_run_id is None
    if not due or installation.settings.geoserver is not None or request.n_tasks > _FEW_TASKS:
        return
    try:
        published = layers.publish_request(installation, request_id, context.run.run_id)
    except (Conflict, LeaseLost, layers.PublishDeferred) as error:
        context.log.info("The request is left to a run that publishes it: %s", error)
        return
    context.log_event(
        dg.AssetMaterialization(
            "geoserver_layers",
            partition=request_id,
            metadata=published_metadata(installation, request_id, published),
        )
    )
