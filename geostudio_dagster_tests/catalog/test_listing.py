"""Requests as their owners see them, on both databases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from geostudio_dagster.catalog import Catalog, Viewer
from geostudio_dagster.catalog.listing import RequestFilter, _page_of_requests
from geostudio_dagster.catalog.pages import Paging
from geostudio_dagster.catalog.states import RequestStatus
from geostudio_dagster.errors import InvalidRequest, NotFound
from geostudio_dagster_tests.catalog.driving import LATER, Driver

ANN, BOB, ROOT = Viewer("ann@x.org"), Viewer("bob@x.org"), Viewer("root@x.org", admin=True)


def _write(drive: Driver, owner: Viewer, **spec: Any) -> str:
    document = {"model": "m", "spatial_domain": {"urls": ["https://x.org/a.tif"]}, **spec}
    return drive.catalog.create_request(
        request_id=None, spec=document, model_id=drive.model().id, owner=owner.email
    ).id


def _ids(drive: Driver, viewer: Viewer, page: Paging | None = None, **wanted: Any) -> list[str]:
    _, records = drive.catalog.list_requests(viewer, RequestFilter(**wanted), page or Paging())
    return [record.id for record in records]


def test_each_sees_their_own_and_administrators_all(drive: Driver) -> None:
    mine, other = _write(drive, ANN), _write(drive, BOB)
    assert _ids(drive, ANN) == [mine]
    assert _ids(drive, ROOT) == [other, mine]
    assert drive.catalog.visible_request(mine, ROOT).owner == ANN.email
    for look in (drive.catalog.visible_request, drive.catalog.owned_request):
        with pytest.raises(NotFound):
            look(mine, BOB)
    with pytest.raises(NotFound):
        drive.catalog.delete_request(mine, BOB)


def test_filters(drive: Driver) -> None:
    plain = _write(drive, ANN, name="Plain", description="Häuser 100%")
    tuned = _write(drive, ANN, client={"fine_tuning_id": "geotune-AB", "demo": {"demo": True}})
    placed = _write(drive, ANN, location="vienna")
    drive.catalog.cancel(placed)
    assert _ids(drive, ANN, tune_id="GEOTUNE-ab") == _ids(drive, ANN, saved=True) == [tuned]
    assert _ids(drive, ANN, location="vienna") == [placed]
    assert _ids(drive, ANN, statuses=(RequestStatus.STOPPED,)) == [placed]
    assert _ids(drive, ANN, card_id=drive.model().id) == [placed, tuned, plain]
    assert _ids(drive, ANN, created_by=BOB.email) == []
    assert _ids(drive, ANN, Paging(q="häuser 100%")) == [plain]
    assert _ids(drive, ANN, Paging(q="_")) == []
    assert _ids(drive, ANN, Paging(sort="name", limit=1, skip=2)) == [plain]
    middle = drive.catalog.request(tuned).created_at
    assert _ids(drive, ANN, created_after=middle) == [placed, tuned]
    assert _ids(drive, ANN, created_before=middle) == [plain]
    with pytest.raises(InvalidRequest, match="sort"):
        _ids(drive, ANN, Paging(sort="owner"))


def test_totals_are_exact_on_every_page_and_beyond_the_end(drive: Driver) -> None:
    catalog = drive.catalog
    mine = [_write(drive, ANN, name=f"scene {number}") for number in range(5)]
    _write(drive, BOB)
    catalog.delete_request(mine.pop(), ANN)

    def asked(viewer: Viewer, page: Paging, **wanted: Any) -> tuple[int, int]:
        total, records = catalog.list_requests(viewer, RequestFilter(**wanted), page)
        return total, len(records)

    assert asked(ANN, Paging(limit=3)) == (4, 3)
    assert asked(ANN, Paging(limit=3, skip=3)) == (4, 1)
    assert asked(ANN, Paging(skip=4)) == (4, 0)
    assert asked(ROOT, Paging(limit=1, skip=1_000_000)) == (5, 0)
    assert asked(ANN, Paging(), location="nowhere") == (0, 0)
    assert asked(ROOT, Paging(q="scene 3"), created_by=ANN.email) == (1, 1)


def test_statements_are_kept_but_never_for_whom_they_were_made(drive: Driver) -> None:
    mine, other = _write(drive, ANN), _write(drive, BOB)
    for viewer, id_, name in ((ANN, mine, "wetlands"), (BOB, other, "forests")):
        group = drive.catalog.create_group(viewer, name, None).id
        drive.catalog.share_artifact(viewer, group, "inference_run", id_)
        member = Viewer(f"member of {name}", groups=frozenset({group}))
        assert _ids(drive, member) == [id_]
        assert drive.catalog.visible_request(id_, member).owner == viewer.email
        with pytest.raises(NotFound):
            drive.catalog.owned_request(id_, member)
    for viewer, seen in ((ANN, [mine]), (BOB, [other]), (ROOT, [other, mine]), (ANN, [mine])):
        assert _ids(drive, viewer) == seen
        assert _ids(drive, viewer, Paging(q="vienna")) == []


def test_sqlite_counts_from_an_index_alone(sqlite_template: Path) -> None:
    catalog = Catalog.open(f"sqlite:///{sqlite_template}")
    for viewer, index in ((ROOT, "ix_requests_live"), (ANN, "ix_requests_live_of_owner")):
        query = _page_of_requests(viewer.pattern, frozenset(), Paging().pattern)
        compiled = query.compile(catalog._reader)
        plan = f"EXPLAIN QUERY PLAN {compiled}"
        with catalog._read() as session:
            values = {**compiled.params, **viewer.values, **Paging().values}
            given = tuple(values[name] for name in compiled.positiontup or ())
            lines = session.connection().exec_driver_sql(plan, given).all()
        assert [f"COVERING INDEX {index}" in line[3] for line in lines].count(True) == 2
    catalog.close()


def test_deleted_is_gone_and_stopped_and_told_of(drive: Driver) -> None:
    r = drive.planned(2, 1)
    deleted = drive.catalog.delete_request(r, ROOT)
    assert (deleted.status, deleted.deleted_at is not None) == ("STOPPED", True)
    assert _ids(drive, ROOT) == []
    task = drive.catalog.tasks(r)[0].id
    for gone in (
        lambda: drive.catalog.visible_request(r, ROOT),
        lambda: drive.catalog.visible_task(task, ROOT),
        lambda: drive.catalog.delete_request(r, ROOT),
    ):
        with pytest.raises(NotFound):
            gone()
    assert drive.catalog.events(r)[-1].kind == "deleted"


def test_counts_and_pages_of_tasks(drive: Driver) -> None:
    r, other = drive.planned(7, 2), drive.planned(1, 1)
    assert drive.catalog.figures_of_requests([r, other, "none"]) == {
        r: ({"READY": 7, "WAITING": 21}, {"READY": 7}),
        other: ({"READY": 1, "WAITING": 3}, {"READY": 1}),
        "none": ({}, {}),
    }
    assert [task.number for task in drive.catalog.each_task(r)] == list(range(7))
    assert [task.number for task in drive.catalog.each_task(r, skip=2, limit=3)] == [2, 3, 4]
    assert list(drive.catalog.each_task(r, skip=7)) == []


def test_the_latest_events_of_many_requests(drive: Driver) -> None:
    r, other = drive.planned(1, 1), drive.planned(1, 1)
    last = drive.catalog.events(r)[-1].id
    assert drive.catalog.latest_events({r: -1})[r] == last
    assert drive.catalog.latest_events({r: last, other: 0}).keys() == {other}
    assert drive.catalog.latest_events({}) == {}


def test_one_task_alone_is_tried_again(drive: Driver) -> None:
    r = drive.planned(3, 3)
    for number in range(3):
        drive.run_shard(r, number, f"run{number}", fail=range(3))
    task = drive.catalog.tasks(r)[1].id
    drive.catalog.begin_publish(r, "publication")
    drive.catalog.finish_publish(r, run_id="publication")
    assert drive.catalog.retry(r, task) == 1
    assert [str(one.status) for one in drive.catalog.tasks(r)] == ["FAILED", "RUNNING", "FAILED"]
    due = drive.catalog.shards_to_dispatch(LATER, 10, r)
    assert [shard.key for shard in due] == [drive.key(r, 1)]
