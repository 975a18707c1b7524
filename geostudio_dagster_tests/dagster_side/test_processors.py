"""Users' processors in the main job: chains, their files, their failures, their end."""

from __future__ import annotations

import json
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
import rasterio
from dagster import AssetKey

from geostudio_dagster.catalog import ModelRecord
from geostudio_dagster.defs.processor_assets import processor_key
from geostudio_dagster.errors import InvalidRequest
from geostudio_dagster.installation import Installation
from geostudio_dagster.storage import sha256_of
from geostudio_dagster_tests.conftest import MakeScene, write_scene
from geostudio_dagster_tests.dagster_side.test_kill import PATIENCE_S, Place
from geostudio_dagster_tests.driving import Driver, path_of, submit, tasks_of
from geostudio_dagster_tests.scripts import COUNT, DROP, ENDLESS, FAIL, upload

FIRST, SECOND = "after_postprocess/0/processed.tif", "after_postprocess/1/scaled.tif"


def test_a_chain_runs_after_postprocess_and_its_files_go_everywhere(
    installation: Installation, model: ModelRecord, make_scene: MakeScene, driver: Driver
) -> None:
    drop = upload(installation, "drop-class", DROP, processor_parameters={"drop": 0})
    upload(installation, "count", COUNT)
    chain = [
        {"processor": "drop-class", "parameters": {"drop": 1}},
        {"processor": "count@1", "parameters": {"factor": 2.5}},
    ]
    scene = make_scene("a_2024-06-30.tif")
    request = submit(installation, [scene], model, name="Chained", processors=chain)
    assert driver.until_over(request) == "COMPLETED"

    (task,) = tasks_of(installation, request)
    assert [(s.process_id, str(s.status)) for s in task.steps] == [
        ("url-connector", "FINISHED"),
        ("terratorch-inference", "FINISHED"),
        ("postprocess-generic", "FINISHED"),
        ("generic-python-processor", "FINISHED"),
        ("push-to-geoserver", "FINISHED"),
    ]
    with rasterio.open(path_of(installation, task.id, "prediction")) as file:
        prediction = file.read(1)
    with rasterio.open(path_of(installation, task.id, FIRST)) as file:
        dropped = file.read(1)
    with rasterio.open(path_of(installation, task.id, SECOND)) as file:
        scaled = file.read(1)
        assert file.profile["tiled"]
    expected = np.where(prediction == 1, 255, prediction)
    np.testing.assert_array_equal(dropped, expected)
    np.testing.assert_array_equal(scaled, np.where(expected == 255, -1, expected * 2.5))

    said = task.step("generic-python-processor").metrics["scripts"]
    assert [entry["processor"] for entry in said] == ["drop-class@1", "count@1"]
    assert said[0]["printed"]["dropped"] == int((prediction == 1).sum())
    assert said[0]["printed"]["source"].endswith(f"{task.id}_pred.tif")

    with zipfile.ZipFile(path_of(installation, task.id, "archive")) as archive:
        assert {
            f"{task.id}_drop_class_processed.tif",
            f"{task.id}_count_scaled.tif",
            f"{task.id}_count_counts.csv",
            f"{task.id}_count_outline.geojson",
        } <= set(archive.namelist())
    item = json.loads(path_of(installation, task.id, "stac").read_text())
    asset = item["assets"]["after_postprocess-0-processed.tif"]
    assert asset["href"] == f"./{task.id}_drop_class_processed.tif"
    assert asset["title"] == "processed.tif, by drop-class@1"

    layers = {layer.name: layer for layer in installation.catalog.layers(request)}
    assert list(layers) == ["input_rgb", "pred", "drop_class_processed", "count_scaled"]
    assert layers["drop_class_processed"].style["kind"] == "classes"
    assert layers["count_scaled"].style["kind"] == "ramp"
    assert layers["count_scaled"].title == "count@1 · scaled.tif · Chained"

    event = driver.instance.get_latest_materialization_event(processor_key(drop.owner, drop.name))
    assert event is not None and event.asset_materialization is not None
    metadata = {key: value.value for key, value in event.asset_materialization.metadata.items()}
    assert (metadata["request"], metadata["version"], metadata["finished"]) == (request, 1, 1)
    event = driver.instance.get_latest_materialization_event(AssetKey("processor_outputs"))
    assert event is not None and event.asset_materialization is not None
    metadata = {key: value.value for key, value in event.asset_materialization.metadata.items()}
    assert metadata["scripts"][task.id][0]["printed"]["status"] == "success"
    assert metadata["isolation"] in {"bubblewrap", "rlimits"}
    assert "preview" in metadata


def test_before_postprocess_the_statistics_are_of_what_the_processor_made(
    installation: Installation, model: ModelRecord, make_scene: MakeScene, driver: Driver
) -> None:
    upload(installation, "drop-class", DROP, position="before_postprocess")
    upload(installation, "count", COUNT)
    chain = [
        {"processor": "drop-class", "parameters": {"drop": 1}},
        {"processor": "count", "parameters": {"factor": 1}},
    ]
    request = submit(installation, [make_scene("a.tif")], model, processors=chain)
    assert driver.until_over(request) == "COMPLETED"
    (task,) = tasks_of(installation, request)
    assert [step.process_id for step in task.steps] == [
        "url-connector",
        "terratorch-inference",
        "generic-python-processor-before-postprocess",
        "postprocess-generic",
        "generic-python-processor",
        "push-to-geoserver",
    ]
    stats = json.loads(path_of(installation, task.id, "stats").read_text())
    pixels = {entry["value"]: entry["pixels"] for entry in stats["classes"]}
    assert pixels[1] == 0
    assert pixels[0] > 0
    with rasterio.open(path_of(installation, task.id, "after_postprocess/1/scaled.tif")) as file:
        assert not (file.read(1) == 1).any(), "the chain goes on with what was made before"


def test_a_processor_after_postprocess_gets_what_was_masked(
    installation: Installation, model: ModelRecord, make_scene: MakeScene, driver: Driver
) -> None:
    scene = make_scene("c.tif", size=256, bands=("B02", "B03", "B04", "B08", "SCL"))
    with rasterio.open(scene, "r+") as file:
        codes = np.full((256, 256), 4, np.uint16)
        codes[:, 128:] = 9
        file.write(codes, 5)
    upload(installation, "drop-class", DROP)
    request = submit(
        installation,
        [scene],
        model,
        masking={"band": "SCL", "encoding": "sentinel2_scl", "kinds": ["cloud"]},
        processors=[{"processor": "drop-class", "parameters": {"drop": 999}}],
    )
    assert driver.until_over(request) == "COMPLETED"
    (task,) = tasks_of(installation, request)
    (said,) = task.step("generic-python-processor").metrics["scripts"]
    assert said["printed"]["source"].endswith(f"{task.id}_pred_masked.tif")
    with rasterio.open(path_of(installation, task.id, "masked")) as file:
        masked = file.read(1)
    with rasterio.open(path_of(installation, task.id, FIRST)) as file:
        dropped = file.read(1)
    assert said["printed"]["dropped"] == (masked == 999).sum() > 0
    np.testing.assert_array_equal(dropped, np.where(masked == 999, 255, masked))


def test_a_failing_script_fails_its_task_with_its_own_words(
    installation: Installation, model: ModelRecord, make_scene: MakeScene, driver: Driver
) -> None:
    good, bad = make_scene("good.tif", seed=1), make_scene("bad.tif", seed=2)
    odd = FAIL.replace("import sys", "import os, sys").replace(
        'sys.exit("', 'os.environ["GEOSTUDIO_INPUT"].endswith("task_0_pred.tif") or sys.exit("'
    )
    upload(installation, "picky", odd)
    request = submit(installation, [good, bad], model, processors=[{"processor": "picky"}])
    assert driver.until_over(request) == "COMPLETED_WITH_ERRORS"
    first, second = tasks_of(installation, request)
    assert (first.status, second.status) == ("FINISHED", "FAILED")
    step = second.step("generic-python-processor")
    assert step.error_code == "processor_failed"
    assert "picky@1" in str(step.error)
    assert "no cloud band in this scene" in str(step.error)
    assert step.attempts == 1, "the same script would only fail again"


def test_the_last_version_is_pinned_and_deleting_it_ends_no_request(
    installation: Installation, model: ModelRecord, make_scene: MakeScene, driver: Driver
) -> None:
    first = upload(installation, "drop-class", DROP, processor_parameters={"drop": 1})
    request = submit(
        installation, [make_scene("a.tif")], model, processors=[{"processor": "drop-class"}]
    )
    upload(installation, "drop-class", FAIL)
    installation.catalog.delete_processor(first.id)
    assert installation.catalog.unneeded_scripts() == []
    assert driver.until_over(request) == "COMPLETED"
    (task,) = tasks_of(installation, request)
    assert installation.catalog.artifact(task.id, FIRST).metadata["processor"] == "drop-class@1"
    assert installation.catalog.unneeded_scripts() == [first.key]


def test_doing_it_again_gives_equal_bytes_and_leaves_nothing_stale(
    installation: Installation, model: ModelRecord, make_scene: MakeScene, driver: Driver
) -> None:
    upload(installation, "count", COUNT)
    request = submit(
        installation, [make_scene("a.tif")], model, processors=[{"processor": "count"}]
    )
    driver.until_over(request)
    (task,) = tasks_of(installation, request)
    catalog = installation.catalog
    before = {a.name: a.sha256 for a in catalog.artifacts(task.id)}
    assert sum(name.startswith("after_postprocess/0/") for name in before) == 3
    driver.launch("shard_job", partition=f"{request}/00000", assets=["processor_outputs"])
    assert driver.until_over(request) == "COMPLETED"
    assert {a.name: a.sha256 for a in catalog.artifacts(task.id)} == before
    for artifact in catalog.artifacts(task.id):
        if not artifact.key.startswith("file:"):
            assert sha256_of(installation.path_of(artifact)) == artifact.sha256


def test_layers_are_picked_by_the_end_of_the_files_names(
    installation: Installation, model: ModelRecord, make_scene: MakeScene, driver: Driver
) -> None:
    upload(installation, "count", COUNT)
    layers = [{"suffix": "_scaled.tif", "name": "scaled", "title": "Scaled twice"}]
    request = submit(
        installation,
        [make_scene("a.tif", seed=1), make_scene("b.tif", seed=2)],
        model,
        processors=[{"processor": "count"}],
        output_layers=layers,
    )
    assert driver.until_over(request) == "COMPLETED"
    found = {layer.name: layer for layer in installation.catalog.layers(request)}
    assert list(found) == ["input_rgb", "pred", "scaled"]
    assert found["scaled"].title.startswith("Scaled twice · ")
    assert len(found["scaled"].granules) == 2


@pytest.mark.parametrize(
    ("use", "sentence"),
    [
        ({"processor": "nothing"}, "processors.0.processor: There is no processor nothing; "),
        ({"processor": "drop-class", "parameters": {"drop": "one"}}, "parameters.drop: is text"),
        ({"processor": "drop-class", "colour": 1}, "known: processor, parameters, position"),
        ({"processor": "drop-class", "position": "sometime"}, "processors.0.position"),
    ],
)
def test_a_wrong_chain_is_refused_before_anything_is_written(
    installation: Installation, model: ModelRecord, use: dict[str, object], sentence: str
) -> None:
    upload(installation, "drop-class", DROP, processor_parameters={"drop": 1})
    with pytest.raises(InvalidRequest) as refusal:
        submit(installation, ["https://example.org/a.tif"], model, processors=[use])
    assert sentence in str(refusal.value)
    assert installation.catalog.requests() == []


def test_a_cancelled_request_ends_its_scripts(
    installation: Installation, model: ModelRecord, make_scene: MakeScene, driver: Driver
) -> None:
    upload(installation, "endless", ENDLESS)
    request = submit(
        installation, [make_scene("a.tif")], model, processors=[{"processor": "endless"}]
    )
    task = f"{request}-task_0"

    def cancel_once_it_runs() -> None:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and not running(task):
            time.sleep(0.05)
        installation.catalog.cancel(request)

    with ThreadPoolExecutor(1) as pool:
        cancelled = pool.submit(cancel_once_it_runs)
        assert driver.until_over(request) == "STOPPED"
        cancelled.result()
    assert running(task) == []
    assert installation.catalog.task(task).step("generic-python-processor").status == "STOPPED"
    scratch = installation.settings.data_folder / "scratch"
    assert [path for path in scratch.rglob("*") if path.is_file()] == []


def running(task: str) -> list[str]:
    """Processes that work on the task's prediction."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes().decode(errors="replace")
            if f"{task}_pred.tif" in words:
                found.append(words)
    return found


@pytest.mark.live
@pytest.mark.timeout(1800)
def test_kills_change_no_byte_of_what_scripts_make(tmp_path: Path, bundle_folder: Path) -> None:
    scenes = tmp_path / "scenes"
    urls = [str(write_scene(scenes, f"s{n}_2024-07-0{n + 1}.tif", seed=n)) for n in range(2)]
    chain = [{"processor": "drop-class", "parameters": {"drop": 1}}, {"processor": "count"}]
    document: dict[str, object] = {
        "id": str(uuid4()),
        "model": "demo-land-cover",
        "spatial_domain": {"urls": urls},
        "processors": chain,
    }
    request = str(document["id"])

    def place(name: str) -> Place:
        made = Place(tmp_path / name, scenes)
        with Installation.open(made.settings) as installation:
            upload(installation, "drop-class", DROP)
            upload(installation, "count", COUNT)
        made.submit(document, bundle_folder)
        return made

    calm, troubled = place("calm"), place("troubled")
    assert calm.start(request).wait(PATIENCE_S) == 0
    killed = 0
    for number in range(2):
        worker = troubled.start(request)
        deadline = time.monotonic() + PATIENCE_S
        while not running(f"{request}-task_{number}") and time.monotonic() < deadline:
            if worker.poll() is not None:
                break
            time.sleep(0.02)
        killed += worker.poll() is None
        worker.kill()
        worker.wait()
    assert killed, "no script was hit while it ran"
    worker = troubled.start(request)
    try:
        assert worker.wait(PATIENCE_S) == 0
    finally:
        worker.kill()
    assert results(troubled) == results(calm)
    assert troubled.leftovers() == []
    with Installation.open(troubled.settings) as installation:
        assert installation.catalog.request(request).status == "COMPLETED"


def results(place: Place) -> dict[str, str]:
    """Digests of all files but the logs, which tell of every attempt."""
    return {name: digest for name, digest in place.files().items() if not name.endswith(".log")}
