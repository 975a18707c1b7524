"""Housekeeping: what is over goes after its time, what lives stays, and a kill costs a round."""

from __future__ import annotations

import datetime as dt
import os
import shutil
from pathlib import Path
from typing import Any
from uuid import uuid4

import dagster as dg
import pytest
from dagster import DagsterInstance, RunsFilter
from pydantic import SecretStr
from sqlalchemy import inspect, select, text, update

from geostudio_dagster import housekeeping
from geostudio_dagster.catalog import ModelRecord, Viewer
from geostudio_dagster.catalog.api_schema import ModelCard, Share, Tune
from geostudio_dagster.catalog.database import utc_now
from geostudio_dagster.catalog.schema import Model, Request
from geostudio_dagster.installation import Installation
from geostudio_dagster.models.registration import register_bundle
from geostudio_dagster.pipeline.launches import REQUEST_TAG
from geostudio_dagster.settings import GeoServerSettings, Settings
from geostudio_dagster_tests.conftest import MakeScene
from geostudio_dagster_tests.driving import Driver, submit
from geostudio_dagster_tests.emulators.geoserver import GeoServerEmulator, serving

OWNER = Viewer("tests", admin=True)
DAY = dt.timedelta(days=1)


def clean(driver: Driver) -> str:
    """One round of the job; what it logged."""
    before = len(driver.results)
    result = driver.launch("housekeeping")
    assert result.success
    del driver.results[before:]
    return "\n".join(
        entry.user_message
        for entry in driver.instance.all_logs(result.run_id)
        if entry.user_message
    )


def aged(installation: Installation, table: Any, identifier: str, **columns: dt.timedelta) -> None:
    """Set times of a row to that long ago."""
    key = inspect(table).primary_key[0]
    times = {name: utc_now() - age for name, age in columns.items()}
    with installation.catalog._write() as session:
        session.execute(update(table).where(key == identifier).values(**times))


def rows(installation: Installation, request_id: str) -> dict[str, int]:
    """How many rows of each table belong to a request."""
    found = {}
    with installation.catalog._read() as session:
        connection = session.connection()
        for table in inspect(connection).get_table_names():
            columns = {column["name"] for column in inspect(connection).get_columns(table)}
            name = "request_id" if "request_id" in columns else "id" if table == "requests" else ""
            if name:
                query = text(f"SELECT count(*) FROM {table} WHERE {name} = :id")
                found[table] = session.scalar(query, {"id": request_id}) or 0
    return found


def files(installation: Installation, request_id: str) -> list[Path]:
    folder = installation.storage.path(request_id)
    return [path for path in folder.rglob("*") if path.is_file()]


def keys(instance: DagsterInstance, definition: str, request_id: str) -> list[str]:
    return [
        key for key in instance.get_dynamic_partitions(definition) if key.startswith(request_id)
    ]


def runs(instance: DagsterInstance, request_id: str) -> int:
    return instance.get_runs_count(RunsFilter(tags={REQUEST_TAG: request_id}))


@pytest.fixture
def finished(
    installation: Installation, model: ModelRecord, make_scene: MakeScene, driver: Driver
) -> tuple[str, str]:
    """Two requests that are COMPLETED."""
    scenes = [make_scene(f"s{n}.tif", size=64, seed=n) for n in (1, 2)]
    both = [submit(installation, [scene], model) for scene in scenes]
    for request in both:
        assert driver.until_over(request) == "COMPLETED"
    return both[0], both[1]


def test_a_deleted_request_goes_with_all_that_was_made_of_it_after_its_time(
    installation: Installation, driver: Driver, finished: tuple[str, str]
) -> None:
    gone, stays = finished
    untouched = rows(installation, stays), files(installation, stays)
    installation.catalog.delete_request(gone, OWNER)
    clean(driver)
    assert files(installation, gone)  # it was deleted just now

    aged(installation, Request, gone, deleted_at=8 * DAY)
    assert f"request {gone}" in clean(driver)
    assert set(rows(installation, gone).values()) == {0}
    assert not installation.storage.path(gone).exists()
    assert runs(driver.instance, gone) == 0
    for definition in ("requests", "shards"):
        assert keys(driver.instance, definition, gone) == []

    assert (rows(installation, stays), files(installation, stays)) == untouched
    assert runs(driver.instance, stays) >= 2  # planned, worked
    assert keys(driver.instance, "requests", stays) == [stays]
    assert gone not in clean(driver)


def test_what_is_deleted_but_not_over_waits(
    installation: Installation, model: ModelRecord, make_scene: MakeScene, driver: Driver
) -> None:
    scene = make_scene("s.tif", size=64)
    request = submit(installation, [scene], model)
    driver._evaluate("request_planner")
    installation.catalog.begin_shard_run(f"{request}/00000", "run")
    task = f"{request}-task_0"
    installation.catalog.claim(f"{request}/00000", "url-connector", "run", lease_s=3600)
    assert installation.catalog.start_step(task, "url-connector", "run")
    installation.catalog.delete_request(request, OWNER)
    aged(installation, Request, request, deleted_at=100 * DAY)
    assert request not in clean(driver)
    assert installation.catalog.task(task).status == "RUNNING"
    assert files(installation, request)


def test_a_round_that_was_killed_is_finished_by_the_next(
    installation: Installation,
    driver: Driver,
    finished: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gone, _ = finished
    installation.catalog.delete_request(gone, OWNER)
    aged(installation, Request, gone, deleted_at=8 * DAY)
    for broken in (
        (housekeeping, "_remove_layers"),
        (type(installation.storage), "delete"),
        (type(installation.catalog), "forget_request"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(*broken, _die)
            with pytest.raises(KeyboardInterrupt):
                housekeeping.remove_request(installation, installation.catalog.request(gone))
        assert rows(installation, gone)["requests"] == 1
    with monkeypatch.context() as patch:  # half of the rows
        patch.setattr("geostudio_dagster.catalog.leavings._forget_permissions", _die)
        with pytest.raises(KeyboardInterrupt):
            installation.catalog.forget_request(gone)
    assert rows(installation, gone)["tasks"] == 0
    clean(driver)
    assert set(rows(installation, gone).values()) == {0}
    assert not installation.storage.path(gone).exists()


def _die(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_old_runs_and_keys_go_and_their_requests_stay(
    installation: Installation, driver: Driver, finished: tuple[str, str]
) -> None:
    old, recent = finished
    aged(installation, Request, old, finished_at=31 * DAY)
    assert old not in clean(driver)  # somebody launched a run of it only now

    with driver.instance._run_storage.connect() as connection:
        connection.execute(
            text(
                "UPDATE runs SET create_timestamp = '2020-01-01 00:00:00.000000' WHERE run_id IN"
                " (SELECT run_id FROM run_tags WHERE value = :id)"
            ),
            {"id": old},
        )
    assert f"runs of request {old}" in clean(driver)
    assert runs(driver.instance, old) == 0
    assert keys(driver.instance, "requests", old) == keys(driver.instance, "shards", old) == []
    assert runs(driver.instance, recent) >= 2
    assert keys(driver.instance, "shards", recent) == [f"{recent}/00000"]
    assert installation.catalog.layers(old) and files(installation, old)
    assert old not in clean(driver)


def test_geoserver_loses_the_layers_and_only_those(
    *,
    settings: Settings,
    model: ModelRecord,
    make_scene: MakeScene,
    monkeypatch: pytest.MonkeyPatch,
    installation: Installation,
    driver: Driver,
) -> None:
    with serving() as emulator:
        url, password = emulator.url, SecretStr(GeoServerEmulator.password)
        monkeypatch.setenv("GEOSTUDIO_GEOSERVER__URL", url)
        monkeypatch.setenv("GEOSTUDIO_GEOSERVER__PASSWORD", GeoServerEmulator.password)
        monkeypatch.setenv("GEOSTUDIO_GEOSERVER__ATTEMPTS", "1")
        geoserver = GeoServerSettings(url=url, password=password, attempts=1)
        changed = settings.model_copy(update={"geoserver": geoserver})
        driver.installation = Installation(changed, installation.catalog, installation.storage)
        scenes = [make_scene(f"s{n}.tif", size=64, seed=n) for n in (1, 2)]
        gone, stays = (submit(installation, [scene], model) for scene in scenes)
        for request in (gone, stays):
            assert driver.until_over(request) == "COMPLETED"
        installation.catalog.delete_request(gone, OWNER)
        aged(installation, Request, gone, deleted_at=8 * DAY)

        emulator.fail_next(503, "starting up", times=1000)
        assert f"request {gone} stays" in clean(driver)
        assert rows(installation, gone)["requests"] == 1
        assert files(installation, gone)

        emulator.recover()
        clean(driver)
        kept = {f"{stays}-input_rgb", f"{stays}-pred"}
        workspace = emulator.workspaces["geofm"]
        assert set(workspace.layers) == set(workspace.stores) == set(workspace.styles) == kept
        assert set(rows(installation, gone).values()) == {0}


def test_a_round_is_bounded(
    installation: Installation, model: ModelRecord, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEOSTUDIO_HOUSEKEEPING__ITEMS", "2")
    requests = [submit(installation, ["https://example.org/s.tif"], model) for _ in range(5)]
    for request in requests:
        installation.catalog.delete_request(request, OWNER)
        aged(installation, Request, request, deleted_at=8 * DAY)
    left = []
    for _ in range(3):
        clean(driver)
        left.append(sum(rows(installation, request)["requests"] for request in requests))
    assert left == [3, 1, 0]


def test_expired_files_go_but_not_one_that_a_live_request_names(
    installation: Installation, model: ModelRecord, make_scene: MakeScene, driver: Driver
) -> None:
    catalog, storage = installation.catalog, installation.storage
    content = make_scene("s.tif", size=64).read_bytes()

    def shared() -> str:
        share = catalog.create_share("tests", "s.tif", "s.tif", DAY, "image/tiff")
        storage.commit_bytes(content, share.key)
        catalog.finish_upload(share.id, len(content), "image/tiff", DAY)
        return share.id

    named, expired, fresh = shared(), shared(), shared()
    never = catalog.create_share("tests", "n.tif", "n.tif", DAY, "image/tiff").id
    submit(installation, [f"share://{named}/s.tif"], model)
    for share in (named, expired, never):
        aged(installation, Share, share, expires_at=DAY)
    clean(driver)
    assert set(catalog.shares([named, expired, fresh, never])) == {named, fresh}
    assert {path.name for path in storage.path("shares").iterdir()} == {named, fresh}


def test_models_cards_and_tunes_go_unless_a_request_is_of_them(
    installation: Installation,
    model: ModelRecord,
    bundle_folder: Path,
    tmp_path: Path,
    driver: Driver,
) -> None:
    catalog = installation.catalog
    submit(installation, ["https://example.org/s.tif"], model)
    copy = shutil.copytree(bundle_folder, tmp_path / "other")
    manifest = copy / "bundle.yaml"
    manifest.write_text(manifest.read_text().replace("title: Land", "title: Other land"))
    other = register_bundle(installation, copy, owner="tests")
    assert other.digest != model.digest
    for record in (model, other):
        catalog.delete_card(OWNER, record.id)
        aged(installation, ModelCard, record.id, deleted_at=8 * DAY)
        aged(installation, Model, record.id, created_at=8 * DAY)
        os.utime(record.uri, (0, 0))
    notes = clean(driver)
    assert f"card {other.id}" in notes and f"bundle {other.digest}" in notes
    assert not Path(other.uri).exists()
    assert Path(model.uri).is_dir()
    with catalog._read() as session:
        assert list(session.scalars(select(Model.id))) == [model.id]

    again = register_bundle(installation, copy, owner="tests")
    clean(driver)
    assert Path(again.uri).is_dir()


def test_a_tune_that_a_request_tries_out_stays(
    installation: Installation, model: ModelRecord, driver: Driver
) -> None:
    request = submit(installation, ["https://example.org/s.tif"], model)
    now = utc_now()
    names = ("geotune-used", "geotune-free", "geotune-alive")
    with installation.catalog._write() as session:
        session.add_all(
            Tune(
                id=name,
                name=name,
                description="",
                status="Finished",
                error=None,
                details={},
                config_url=None,
                checkpoint_url=None,
                owner="tests",
                model_id=None,
                created_at=now,
                updated_at=now,
                deleted_at=None if name == "geotune-alive" else now - 8 * DAY,
            )
            for name in names
        )
        session.execute(update(Request).where(Request.id == request).values(tune_id="geotune-used"))
    clean(driver)
    with installation.catalog._read() as session:
        left = {name for name in names if session.get(Tune, name)}
    assert left == {"geotune-used", "geotune-alive"}


def test_abandoned_scratch_goes_and_what_is_written_to_stays(
    installation: Installation, driver: Driver
) -> None:
    scratch = installation.settings.data_folder / "scratch"
    for name in ("abandoned", "at-work"):
        (scratch / name / "run").mkdir(parents=True)
        (scratch / name / "run" / "part.tif").write_bytes(b"x")
        os.utime(scratch / name / "run", (0, 0))
        os.utime(scratch / name, (0, 0))
    os.utime(scratch / "abandoned" / "run" / "part.tif", (0, 0))
    upload = installation.storage.scratch_file(f"upload-{uuid4()}")
    upload.write_bytes(b"half of a file")
    os.utime(upload, (0, 0))
    clean(driver)
    assert [path.name for path in scratch.iterdir()] == ["at-work"]


def test_the_schedule_asks_for_a_round_unless_one_is_under_way(
    driver: Driver, tmp_path: Path
) -> None:
    schedule = driver.definitions.resolve_schedule_def("housekeeping_schedule")
    with (
        DagsterInstance.local_temp(str(tmp_path)) as instance,
        dg.build_schedule_context(instance=instance) as context,
    ):
        assert len(schedule.evaluate_tick(context).run_requests or []) == 1
        instance.create_run_for_job(driver.definitions.resolve_job_def("housekeeping"))
        assert not schedule.evaluate_tick(context).run_requests
