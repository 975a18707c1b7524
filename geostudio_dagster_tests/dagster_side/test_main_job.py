"""A scene goes in, a map layer comes out: through the real sensors, jobs, catalog and files."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import numpy as np
import rasterio
from dagster import AssetKey
from PIL import Image
from rio_cogeo.cogeo import cog_validate

from geostudio_dagster.catalog import ModelRecord
from geostudio_dagster.installation import Installation
from geostudio_dagster.pipeline.plans import plan_request
from geostudio_dagster.storage import sha256_of
from geostudio_dagster_tests.conftest import MakeScene
from geostudio_dagster_tests.driving import Driver, path_of, submit, tasks_of


def test_one_scene_ends_as_a_layer(
    installation: Installation, model: ModelRecord, make_scene: MakeScene, driver: Driver
) -> None:
    scene = make_scene("a_2024-06-30.tif", size=700)
    request = submit(installation, [str(scene)], model, name="one")
    assert driver.until_over(request) == "COMPLETED"

    (task,) = tasks_of(installation, request)
    assert task.status == "FINISHED"
    assert task.date == "2024-06-30"
    assert [(s.process_id, str(s.status)) for s in task.steps] == [
        ("url-connector", "FINISHED"),
        ("terratorch-inference", "FINISHED"),
        ("postprocess-generic", "FINISHED"),
        ("push-to-geoserver", "FINISHED"),
    ]

    prediction = path_of(installation, task.id, "prediction")
    assert cog_validate(prediction, strict=True) == (True, [], [])
    with rasterio.open(scene) as before, rasterio.open(prediction) as after:
        assert (after.crs, after.transform, after.shape) == (
            before.crs,
            before.transform,
            before.shape,
        )
        assert after.nodata == 255
        assert after.overviews(1)
        assert after.colormap(1)[0] == (0, 0x72, 0xB2, 255)
        empty = before.read(1) == 0
        np.testing.assert_array_equal(after.read(1) == 255, empty)
        tags = after.tags()
        assert tags["GEOSTUDIO_MODEL"] == model.name
        assert tags["GEOSTUDIO_MODEL_DIGEST"] == model.digest
        assert tags["GEOSTUDIO_TASK"] == task.id

    item = json.loads(path_of(installation, task.id, "stac").read_text())
    assert item["stac_version"] == "1.1.0"
    assert item["properties"]["datetime"] == "2024-06-30T00:00:00Z"
    with zipfile.ZipFile(path_of(installation, task.id, "archive")) as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == [
            f"{task.id}_pred.tif",
            f"{task.id}_quicklook.png",
            f"{task.id}_rgb.tif",
            f"{task.id}_stats.json",
        ]
    assert item["assets"]["thumbnail"]["href"] == f"./{task.id}_quicklook.png"
    with Image.open(path_of(installation, task.id, "quicklook")) as picture:
        assert (picture.format, picture.size) == ("PNG", (700, 700))
        np.testing.assert_array_equal(np.asarray(picture)[..., 3] == 0, empty)
    layers = {layer.name: layer for layer in installation.catalog.layers(request)}
    assert set(layers) == {"input_rgb", "pred"}
    assert layers["pred"].granules[0]["key"].endswith("_pred.tif")


def test_materialisations_tell_the_story(
    installation: Installation, model: ModelRecord, make_scene: MakeScene, driver: Driver
) -> None:
    request = submit(installation, [str(make_scene("a.tif"))], model)
    driver.until_over(request)
    shard = f"{request}/00000"
    for asset, partition in (
        ("request_plan", request),
        ("tiles", shard),
        ("predictions", shard),
        ("postprocessed", shard),
        ("processor_outputs", shard),
        ("shard_settled", shard),
        ("geoserver_layers", request),
    ):
        event = driver.instance.get_latest_materialization_event(AssetKey(asset))
        assert event is not None, asset
        assert event.asset_materialization is not None
        assert event.asset_materialization.partition == partition, asset
    event = driver.instance.get_latest_materialization_event(AssetKey("predictions"))
    assert event is not None and event.asset_materialization is not None
    metadata = {key: value.value for key, value in event.asset_materialization.metadata.items()}
    assert metadata["tasks"] == metadata["finished"] == 1
    assert metadata["mpx"] == 0.09
    assert metadata["mpx_per_second"] > 0
    assert metadata["model"] == f"{model.name}@1"
    assert metadata["model_digest"] == model.digest
    assert str(metadata["crs"]).startswith("EPSG:32633")
    assert f"/maps/{request}?grant=" in str(metadata["map"])
    assert "data:image/png;base64,iVBOR" in str(metadata["preview"])
    assert {"seconds_forward", "seconds_read", "seconds_write"} <= set(metadata)


def test_a_bad_task_costs_itself_only(
    installation: Installation,
    model: ModelRecord,
    make_scene: MakeScene,
    driver: Driver,
    serve: Callable[[Path], str],
) -> None:
    """Of 30 URLs three are broken; 27 finish, and a retry runs only the three."""
    folder = make_scene("s_00.tif", size=64, seed=0).parent
    for number in range(1, 28):
        make_scene(f"s_{number:02d}.tif", size=64, seed=number)
    (folder / "s_07.tif").unlink()
    (folder / "s_13.tif").write_text("this is a page, not a raster")
    make_scene("s_21.tif", size=64, bands=("B02", "B03"))
    for number in (28, 29):
        make_scene(f"s_{number:02d}.tif", size=64, seed=number)
    base = serve(folder)
    urls = [f"{base}/s_{number:02d}.tif" for number in range(30)]
    request = submit(installation, urls, model, shard_size=10)
    assert driver.until_over(request) == "COMPLETED_WITH_ERRORS"

    tasks = tasks_of(installation, request)
    failed = {task.number: task for task in tasks if task.status == "FAILED"}
    assert sum(task.status == "FINISHED" for task in tasks) == 27
    assert set(failed) == {7, 13, 21}
    assert "404" in (failed[7].error or "")
    assert "s_13.tif" in (failed[13].error or "")
    assert "B04" in (failed[21].error or "") and "B08" in (failed[21].error or "")
    codes = {n: next(s.error_code for s in t.steps if s.error_code) for n, t in failed.items()}
    assert codes == {7: "not_found", 13: "not_a_raster", 21: "too_few_bands"}

    good = {t.id: sha256_of(path_of(installation, t.id, "prediction"))
            for t in tasks if t.status == "FINISHED"}  # fmt: skip
    times = {t.id: t.steps[1].finished_at for t in tasks if t.status == "FINISHED"}
    make_scene("s_07.tif", size=64, seed=7)
    make_scene("s_13.tif", size=64, seed=13)
    make_scene("s_21.tif", size=64, seed=21)
    assert installation.catalog.retry(request) == 3
    assert driver.until_over(request) == "COMPLETED"
    after = tasks_of(installation, request)
    assert all(task.status == "FINISHED" for task in after)
    assert {t.id: t.steps[1].finished_at for t in after if t.id in times} == times
    assert {task: sha256_of(path_of(installation, task, "prediction")) for task in good} == good
    assert len(installation.catalog.layers(request)[1].granules) == 30


def test_a_split_scene_joins_without_seams(
    installation: Installation, model: ModelRecord, make_scene: MakeScene, driver: Driver
) -> None:
    scene = make_scene("large.tif", size=1300)
    whole = submit(installation, [str(scene)], model)
    split = submit(installation, [str(scene)], model, task_size=512, shard_size=2)
    assert driver.until_over(whole) == driver.until_over(split) == "COMPLETED"
    tasks = tasks_of(installation, split)
    assert len(tasks) > 4
    assert {task.shard_key for task in tasks} == {
        f"{split}/{number:05d}" for number in range(-(-len(tasks) // 2))
    }
    (only,) = tasks_of(installation, whole)
    mosaic = path_of(installation, split, "mosaic-0")
    assert cog_validate(mosaic, strict=True) == (True, [], [])
    with (
        rasterio.open(path_of(installation, only.id, "prediction")) as one,
        rasterio.open(mosaic) as many,
    ):
        assert (one.crs, one.transform, one.shape) == (many.crs, many.transform, many.shape)
        np.testing.assert_array_equal(one.read(1), many.read(1))


def test_a_person_redoes_one_shard_and_its_layer_follows(
    installation: Installation, model: ModelRecord, make_scene: MakeScene, driver: Driver
) -> None:
    urls = [str(make_scene(f"s{n}.tif", size=96, seed=n)) for n in range(3)]
    request = submit(installation, urls, model, shard_size=1)
    driver.until_over(request)
    before = tasks_of(installation, request)
    layer = installation.catalog.layers(request)[1]
    make_scene("s1.tif", size=96, seed=99)  # the scene changed; the person wants it redone

    result = driver.launch("shard_job", partition=f"{request}/00001")
    assert result.success
    # The last shard of a small request publishes it, too.
    assert installation.catalog.request(request).status == "COMPLETED"
    after = tasks_of(installation, request)
    redone = [a.steps[1].finished_at != b.steps[1].finished_at
              for a, b in zip(after, before, strict=True)]  # fmt: skip
    assert redone == [False, True, False]
    followed = installation.catalog.layers(request)[1]
    assert followed.digest != layer.digest
    assert followed.published_at > layer.published_at


def test_redoing_one_asset_redoes_what_depends_on_it(
    installation: Installation, model: ModelRecord, make_scene: MakeScene, driver: Driver
) -> None:
    request = submit(installation, [str(make_scene("s.tif", size=96))], model)
    driver.until_over(request)
    (before,) = tasks_of(installation, request)
    result = driver.launch("shard_job", partition=f"{request}/00000", assets=["predictions"])
    assert result.success
    assert driver.until_over(request) == "COMPLETED"
    (after,) = tasks_of(installation, request)
    changed = [
        old.finished_at != new.finished_at
        for old, new in zip(before.steps, after.steps, strict=True)
    ]
    assert changed == [False, True, True, True]


def test_a_cancelled_request_never_runs_again(
    installation: Installation, model: ModelRecord, make_scene: MakeScene, driver: Driver
) -> None:
    urls = [str(make_scene(f"s{n}.tif", size=64, seed=n)) for n in range(3)]
    request = submit(installation, urls, model, shard_size=1)
    plan_request(installation, request)
    installation.catalog.cancel(request)
    assert driver.until_over(request) == "STOPPED"
    done = len(driver.results)
    for _ in range(3):
        driver.tick()
    assert len(driver.results) == done
    assert installation.catalog.request(request).status == "STOPPED"
    driver.instance.add_dynamic_partitions("shards", [f"{request}/00000"])
    result = driver.launch("shard_job", partition=f"{request}/00000")
    assert not result.success
    assert installation.catalog.request(request).status == "STOPPED"


def test_inbox_files_are_accepted_or_rejected_with_the_reason(
    installation: Installation, model: ModelRecord, make_scene: MakeScene, driver: Driver
) -> None:
    inbox = installation.settings.inbox
    inbox.mkdir(parents=True)
    scene = str(make_scene("s.tif", size=64))
    good = {"model": model.name, "spatial_domain": {"urls": [scene]}}
    (inbox / "good.json").write_text(json.dumps(good))
    (inbox / "unknown.json").write_text(json.dumps(good | {"colour": "red"}))
    (inbox / "model.json").write_text(json.dumps(good | {"model": "nothing"}))
    (inbox / "ignored.txt").write_text("not a request")
    driver.tick()
    (accepted,) = installation.catalog.requests()
    assert (inbox / "accepted" / "good.json").exists()
    assert (inbox / "accepted" / "good.id.txt").read_text().strip() == accepted.id
    reason = (inbox / "rejected" / "unknown.reason.txt").read_text()
    assert reason.startswith("colour: is not a known field; remove it")
    assert "nothing" in (inbox / "rejected" / "model.reason.txt").read_text()
    assert sorted(path.name for path in inbox.iterdir()) == ["accepted", "ignored.txt", "rejected"]
    assert driver.until_over(accepted.id) == "COMPLETED"


def test_a_launch_with_a_whole_request_is_a_way_in(
    installation: Installation, model: ModelRecord, make_scene: MakeScene, driver: Driver
) -> None:
    identifier = str(uuid4())
    document = {
        "id": identifier,
        "model": model.name,
        "spatial_domain": {"urls": [str(make_scene("s.tif", size=64))]},
    }
    config = {"ops": {"plan_request": {"config": {"request": document}}}}
    assert driver.launch("plan_request_job", run_config=config).success
    assert driver.until_over(identifier) == "COMPLETED"
    assert driver.launch("plan_request_job", run_config=config).success  # the same request again
    assert len(installation.catalog.requests()) == 1

    del document["id"]
    document["model"] = "nothing"
    refused = driver.launch("plan_request_job", run_config=config)
    assert not refused.success
    failure = refused.get_step_failure_events()[0]
    assert "Refused: model" in str(failure.event_specific_data)
    assert len(installation.catalog.requests()) == 1
