"""What is said about requests, counted, and in the end forgotten; on both databases."""

from __future__ import annotations

import datetime as dt
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import select, text, update

from geostudio_dagster.catalog import Catalog, Viewer
from geostudio_dagster.catalog.api_schema import ModelCard, Permission, Tune
from geostudio_dagster.catalog.database import utc_now
from geostudio_dagster.catalog.schema import Base, Model, Request
from geostudio_dagster.errors import Conflict
from geostudio_dagster_tests.catalog.driving import LATER, Driver, seconds

ANN, BOB, ROOT = Viewer("ann"), Viewer("bob"), Viewer("root", admin=True)
KINDS = ("created", "planned", "status", "task_failed")
LONG_AGO = utc_now() - dt.timedelta(days=365)


def say(catalog: Catalog, request_id: str, number: int) -> str:
    made = catalog.create_notification(
        request_id,
        event_id=request_id,
        source=f"source {number % 2}",
        detail_type="Inf:Task:Notify",
        timestamp=LONG_AGO,
        detail={"message": str(number)},
        owner="ann",
    )
    return made.id


def seen(catalog: Catalog, request_id: str, viewer: Viewer, **more: Any) -> tuple[int, list[Any]]:
    wanted: dict[str, Any] = {"source": None, "kinds": (), "limit": 100, "skip": 0, **more}
    return catalog.notices(request_id, viewer, **wanted)


def test_notices_are_the_owners_the_latest_first(drive: Driver) -> None:
    catalog = drive.catalog
    request = drive.planned()
    said = [say(catalog, request, number) for number in range(5)]
    total, found = seen(catalog, request, ANN)
    assert (total, [item.id for item in found]) == (5, said[::-1])
    total, found = seen(catalog, request, ROOT, source="source 1")
    assert (total, [item.id for item in found]) == (2, [said[3], said[1]])
    total, found = seen(catalog, request, ANN, kinds=KINDS, skip=4, limit=2)
    assert total == 5 + 3  # created, planned, SUBMITTED
    assert found[0].id == said[0]
    assert found[1].kind in KINDS
    assert seen(catalog, request, BOB, kinds=KINDS) == (0, [])
    assert catalog.events(request)[-1].detail["id"] == said[-1]


def test_a_delivery_is_written_with_each_status_and_taken_once(drive: Driver) -> None:
    catalog = drive.catalog
    request = drive.planned(webhook="https://example.org/hook")
    drive.planned()
    now = utc_now()

    def take(_: int) -> list[Any]:
        return catalog.take_deliveries(now, 1, attempts=2, delay_s=10)

    with ThreadPoolExecutor(4) as pool:
        taken = [item for items in pool.map(take, range(4)) for item in items]
    assert [(item.request_id, item.owner, item.attempt) for item in taken] == [(request, "ann", 1)]
    assert taken[0].detail == {"before": "PENDING", "after": "SUBMITTED"}
    (again,) = catalog.take_deliveries(now + seconds(10), 5, attempts=2, delay_s=10)
    assert (again.id, again.attempt, again.last) == (taken[0].id, 2, True)
    catalog.not_delivered(again.id, "It does not answer.", now, give_up_after=2)
    assert catalog.take_deliveries(LATER, 5, attempts=2, delay_s=10) == []
    assert catalog.events(request)[-1].kind == "webhook_failed"

    drive.catalog.cancel(request)
    (next_one,) = catalog.take_deliveries(LATER, 5, attempts=2, delay_s=10)
    assert next_one.sequence > again.sequence
    catalog.delivered(next_one.id, LATER)
    assert catalog.take_deliveries(LATER + seconds(9999), 5, attempts=2, delay_s=10) == []


def test_figures_count_everything(drive: Driver) -> None:
    drive.over(4, 2, fail=[1])
    drive.planned(3, 3)
    drive.pending()
    stopped = drive.planned(2, 2)
    drive.catalog.cancel(stopped)
    now = utc_now() + seconds(100)
    figures = drive.catalog.figures(now)
    assert figures.requests["COMPLETED_WITH_ERRORS"] == figures.requests["STOPPED"] == 1
    assert figures.requests["PENDING"] == figures.requests["SUBMITTED"] == 1
    assert (figures.tasks["FINISHED"], figures.tasks["FAILED"], figures.tasks["READY"]) == (3, 1, 3)
    assert figures.waiting_shards == 3
    assert 100 <= figures.oldest_wait_s < 200
    assert figures.pixels == 3000


def test_a_request_is_forgotten_with_all_its_rows_and_no_others(drive: Driver) -> None:
    catalog = drive.catalog
    gone, stays = drive.over(6, 3), drive.over(6, 3)
    for request in (gone, stays):
        say(catalog, request, 1)
    before = counted(catalog)
    with pytest.raises(Conflict):
        catalog.forget_request(gone)  # not deleted
    assert counted(catalog) == before
    catalog.delete_request(gone, ANN)
    with catalog._write() as session:
        session.execute(update(Request).where(Request.id == gone).values(deleted_at=LONG_AGO))
    assert [item.id for item in catalog.removable_requests(utc_now(), 10)] == [gone]
    catalog.forget_request(gone)
    assert catalog.removable_requests(utc_now(), 10) == []
    after = counted(catalog)
    halves = {name: number // 2 for name, number in before.items()}
    one_for_both = ("models", "model_cards")
    assert {name: n for name, n in after.items() if name not in one_for_both} == {
        name: n for name, n in halves.items() if name not in one_for_both
    }
    assert len(list(catalog.tasks(stays))) == 6


def counted(catalog: Catalog) -> dict[str, int]:
    with catalog._read() as session:
        return {
            table.name: session.scalar(text(f"SELECT count(*) FROM {table.name}")) or 0
            for table in Base.metadata.sorted_tables
        }


def test_over_requests_the_oldest_first(drive: Driver) -> None:
    first, second, live = drive.over(), drive.over(), drive.planned()
    wanted = [live, second, "unknown", first]
    assert drive.catalog.over_requests(wanted, LATER) == [first, second]
    assert drive.catalog.over_requests(wanted, LONG_AGO) == []


def test_what_a_request_pins_is_not_forgotten(drive: Driver) -> None:
    catalog = drive.catalog
    free, pinned = drive.model("free", "1" * 64), drive.model("water", "0" * 64)
    drive.planned()
    with catalog._write() as session:
        session.execute(update(ModelCard).values(deleted_at=LONG_AGO))
        session.execute(update(Model).values(created_at=LONG_AGO))
        session.execute(text("INSERT INTO groups VALUES ('g', 'g', NULL, 'ann', '2020-01-01')"))
        for card in (free.id, pinned.id):
            grant = {"group_id": "g", "kind": "model", "granted_by": "ann", "granted_at": LONG_AGO}
            session.add(Permission(artifact_id=card, **grant))
    assert catalog.forget_models(utc_now(), 10) == []  # their cards are there
    assert catalog.forget_cards(utc_now(), 10) == [free.id]
    assert catalog.forget_cards(utc_now(), 10) == []
    assert catalog.forget_models(LONG_AGO - seconds(1), 10) == []
    assert catalog.forget_models(utc_now(), 10) == [free.id]
    assert catalog.model_digests() == {"0" * 64}
    with catalog._read() as session:
        assert list(session.scalars(select(Permission.artifact_id))) == [pinned.id]


def test_a_tunes_model_lives_as_long_as_the_tune(drive: Driver) -> None:
    catalog = drive.catalog
    model = drive.model()
    with catalog._write() as session:
        session.execute(update(ModelCard).values(deleted_at=LONG_AGO))
        session.execute(update(Model).values(created_at=LONG_AGO))
        session.add(
            Tune(
                id="geotune-1", name="t", description="", status="Finished", error=None,
                details={}, config_url=None, checkpoint_url=None, owner="ann", model_id=model.id,
                created_at=LONG_AGO, updated_at=LONG_AGO, deleted_at=None,
            )
        )  # fmt: skip
    catalog.forget_cards(utc_now(), 10)
    assert catalog.forget_models(utc_now(), 10) == []
    assert catalog.forget_tunes(utc_now(), 10) == []
    catalog.delete_tune(ANN, "geotune-1")
    assert catalog.forget_tunes(LONG_AGO, 10) == []
    assert catalog.forget_tunes(utc_now(), 10) == ["geotune-1"]
    assert catalog.forget_models(utc_now(), 10) == [model.id]
