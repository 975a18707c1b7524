"""Tunes and models that users hand in become bundles, each in a run of its own."""

# No `from __future__ import annotations`: Dagster reads these signatures as they are.

import dagster as dg
from dagster import DagsterInstance

from geostudio_dagster.catalog.card_records import OnboardingRecord
from geostudio_dagster.catalog.onboarding import WORDS
from geostudio_dagster.defs.launching import run_request
from geostudio_dagster.defs.reconciliation import ended_runs
from geostudio_dagster.defs.resources import InstallationResource
from geostudio_dagster.errors import Conflict, GeostudioError, LeaseLost, NotFound
from geostudio_dagster.installation import Installation
from geostudio_dagster.pipeline import launches
from geostudio_dagster.pipeline.onboarding import onboard
from geostudio_dagster.pipeline.stage import now

TICK_S = 5
WISHES_A_TICK = 20
ATTEMPTS = 3


class OnboardConfig(dg.Config):
    """Which tune or card: ``kind`` is tune or model."""

    kind: str
    id: str


@dg.op(description="Fetch a tune, build its bundle, try its weights, register it.")
def onboard_bundle(
    context: dg.OpExecutionContext, config: OnboardConfig, installation: InstallationResource
) -> None:
    """Onboard one; one that is over, or that another run works on, is left alone."""
    place = installation.get()
    try:
        model = onboard(place, config.kind, config.id, context.run.run_id)
    except (Conflict, NotFound, LeaseLost) as error:
        context.log.info("%s", error)
        return
    except GeostudioError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    if model is None:
        raise dg.Failure("It was refused; its status says why.", allow_retries=False)
    context.add_output_metadata(
        {"model": model.name, "version": model.version, "digest": model.digest}
    )


@dg.job(description="Make a bundle of a tune or a model that a user handed in.")
def onboard_bundle_job() -> None:
    """Onboard one tune or model."""
    onboard_bundle()


@dg.sensor(
    name="onboarder",
    job=onboard_bundle_job,
    minimum_interval_seconds=TICK_S,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Launches a run for every tune and model that waits to become a bundle.",
)
def onboarder(
    context: dg.SensorEvaluationContext, installation: InstallationResource
) -> dg.SensorResult:
    """One run at a time for each, three tries in all."""
    place = installation.get()
    wanted = []
    for wish in place.catalog.onboardings(WISHES_A_TICK):
        launch = _launch(context.instance, place, wish)
        if launch is not None:
            wanted.append(launch)
    return dg.SensorResult(run_requests=wanted)


def _launch(
    instance: DagsterInstance, place: Installation, wish: OnboardingRecord
) -> dg.RunRequest | None:
    if _is_held(place, wish):
        return None
    tag = launches.ONBOARDING_TAG
    tags = {tag: launches.onboarding(wish, 0).tags[tag]}
    earlier = ended_runs(instance, place, launches.ONBOARD_JOB, tags)
    if earlier is None:
        return None
    if len(earlier) >= ATTEMPTS:
        _, reason = earlier[0]
        _give_up(place, wish, f"It was tried {len(earlier)} times; the last time, {reason}.")
        return None
    return run_request(launches.onboarding(wish, len(earlier)))


def _is_held(place: Installation, wish: OnboardingRecord) -> bool:
    """Whether the run that took it up was alive a moment ago."""
    if wish.status != WORDS[wish.kind].working or wish.run_id is None:
        return False
    until = place.catalog.run_lease(wish.run_id)
    return until is not None and until > now()


def _give_up(place: Installation, wish: OnboardingRecord, reason: str) -> None:
    try:
        place.catalog.fail_onboarding(wish.kind, wish.id, reason)
    except NotFound:
        return  # deleted meanwhile
