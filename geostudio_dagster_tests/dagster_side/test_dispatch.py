"""What the dispatcher asks for: no more than can be looked after, limitable by owner and model."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

import dagster as dg
import pytest

from geostudio_dagster.catalog import ModelRecord
from geostudio_dagster.definitions import defs
from geostudio_dagster.defs.reconciliation import reconcile
from geostudio_dagster.installation import Installation
from geostudio_dagster.pipeline.plans import plan_request
from geostudio_dagster.planning.admission import admit
from geostudio_dagster_tests.conftest import MakeScene
from geostudio_dagster_tests.driving import Driver


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as opened:
        yield opened


def launches(instance: dg.DagsterInstance) -> list[dg.RunRequest]:
    definitions = defs()
    context = dg.build_sensor_context(
        instance=instance,
        repository_def=definitions.get_repository_def(),
        resources=definitions.resources,
    )
    with context:
        tick = definitions.resolve_sensor_def("shard_dispatcher").evaluate_tick(context)
    return list(tick.run_requests or [])


def test_no_more_runs_are_asked_for_than_may_be_live(
    installation: Installation,
    model: ModelRecord,
    make_scene: MakeScene,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GEOSTUDIO_SHARDS__MAX_LIVE", "2")
    urls = [str(make_scene(f"s{n}.tif", size=64, seed=n)) for n in range(3)]
    document = {"model": model.name, "spatial_domain": {"urls": urls}, "shard_size": 1}
    request = admit(document, installation.catalog, installation.settings, owner="ann")
    plan_request(installation, request.id)
    first = launches(instance)
    assert [launch.partition_key for launch in first] == [
        f"{request.id}/00000",
        f"{request.id}/00001",
    ]
    assert first[0].tags["geostudio/owner"] == "ann"
    assert first[0].tags["geostudio/model"] == model.id
    assert launches(instance) == []


def test_leases_of_runs_that_are_long_over_are_forgotten(
    installation: Installation, instance: dg.DagsterInstance
) -> None:
    present = dt.datetime.now(dt.UTC)
    installation.catalog.keep_alive("old", 30, present - dt.timedelta(days=2))
    installation.catalog.keep_alive("new", 30, present)
    reconcile(instance, installation)
    assert installation.catalog.run_lease("old") is None
    assert installation.catalog.run_lease("new") is not None


def test_planning_an_unknown_request_leaves_no_partition(
    installation: Installation, instance: dg.DagsterInstance
) -> None:
    config = {"ops": {"plan_request": {"config": {"request_id": "nobody"}}}}
    assert not Driver(installation, instance).launch("plan_request_job", run_config=config).success
    assert instance.get_dynamic_partitions("requests") == []
