"""Runs that fell silent, work that one item must not hold up, and who asked for a run."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import dagster as dg
import pytest

from geostudio_dagster.catalog import Catalog, ModelRecord
from geostudio_dagster.defs.reconciliation import reconcile, why_over
from geostudio_dagster.defs.shard_assets import _asked_for_by_a_person
from geostudio_dagster.installation import Installation
from geostudio_dagster.pipeline.launches import ATTEMPT_TAG
from geostudio_dagster.pipeline.plans import plan_request
from geostudio_dagster.planning.admission import admit
from geostudio_dagster.settings import ShardSettings
from geostudio_dagster_tests.conftest import MakeScene


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as opened:
        yield opened


def begun(instance: dg.DagsterInstance) -> str:
    @dg.job
    def work() -> None:
        pass

    run = instance.create_run_for_job(work, status=dg.DagsterRunStatus.STARTED)
    return run.run_id


def test_a_run_that_fell_silent_is_stopped_before_its_work_is_given_away(
    installation: Installation, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped: list[str] = []
    monkeypatch.setattr(instance.run_launcher, "terminate", stopped.append, raising=False)
    run_id = begun(instance)
    catalog, ago = installation.catalog, dt.timedelta(seconds=70)
    catalog.keep_alive(run_id, 30, dt.datetime.now(dt.UTC))
    assert why_over(instance, installation, run_id) is None
    assert stopped == []
    catalog.keep_alive(run_id, 30, dt.datetime.now(dt.UTC) - ago)
    assert "no sign of life" in (why_over(instance, installation, run_id) or "")
    assert stopped == [run_id]
    run = instance.get_run_by_id(run_id)
    assert run is not None and run.status == dg.DagsterRunStatus.FAILURE


def test_a_run_that_was_made_but_never_queued_is_nobodys(
    installation: Installation, instance: dg.DagsterInstance
) -> None:
    """Who makes a run may die before queueing it; Dagster leaves such a run as it is."""

    @dg.job
    def work() -> None:
        pass

    run_id = instance.create_run_for_job(work).run_id
    assert why_over(instance, installation, run_id) is None
    impatient = dataclasses.replace(
        installation,
        settings=installation.settings.model_copy(
            update={"shards": ShardSettings(start_grace_s=1e-6)}
        ),
    )
    assert "never queued" in (why_over(instance, impatient, run_id) or "")
    run = instance.get_run_by_id(run_id)
    assert run is not None and run.status == dg.DagsterRunStatus.CANCELED


def test_one_shard_that_cannot_be_dealt_with_holds_up_no_other(
    installation: Installation,
    model: ModelRecord,
    make_scene: MakeScene,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    urls = [str(make_scene(f"s{n}.tif", size=64, seed=n)) for n in range(2)]
    document = {"model": model.name, "spatial_domain": {"urls": urls}, "shard_size": 1}
    request = admit(document, installation.catalog, installation.settings, owner="tests")
    plan_request(installation, request.id)
    keys = [shard.key for shard in installation.catalog.shards(request.id)]
    long_ago = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
    installation.catalog.mark_submitted(keys, long_ago)
    original = Catalog.shard_run_ended

    def ended(self: Catalog, key: str, *args: Any) -> Any:
        if key == keys[0]:
            raise RuntimeError("a defect")
        return original(self, key, *args)

    monkeypatch.setattr(Catalog, "shard_run_ended", ended)
    broken, done = reconcile(instance, installation)
    assert "a defect" in broken
    assert keys[1] in done
    states = [str(shard.status) for shard in installation.catalog.shards(request.id)]
    assert states == ["SUBMITTED", "READY"]


@pytest.mark.parametrize(
    ("tags", "again", "person"),
    [
        ({}, False, True),
        ({ATTEMPT_TAG: "0"}, False, False),
        ({ATTEMPT_TAG: "0"}, True, True),  # "Re-execute all" in the UI
        ({ATTEMPT_TAG: "0", "dagster/is_resume_retry": "true"}, True, False),
        ({ATTEMPT_TAG: "0", "dagster/retry_number": "1"}, True, False),
    ],
)
def test_who_asked_for_a_run(tags: dict[str, str], again: bool, person: bool) -> None:
    parent = str(uuid4()) if again else None
    run = dg.DagsterRun("shard_job", tags=tags, parent_run_id=parent, root_run_id=parent)
    assert _asked_for_by_a_person(run) is person
