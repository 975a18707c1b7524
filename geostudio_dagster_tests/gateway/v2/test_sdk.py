"""GEOStudio's own SDK and the calls of its QGIS plugin, unchanged, from the key to the picture."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import rasterio
import requests
from rasterio.io import MemoryFile
from remotezip import RemoteZip

from geostudio_dagster_tests.gateway.v2.sdk_calls import CALLS, Things, answer_to, public_methods
from geostudio_dagster_tests.gateway.v2.serving import PATIENCE_S
from geostudio_dagster_tests.gateway.v2.studio import Studio, open_studio
from geostudio_dagster_tests.models.tunes import BANDS, CKPT, make_upload

STEPS = ["url-connector", "terratorch-inference", "postprocess-generic", "push-to-geoserver"]


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, bundle_folder: Path) -> Iterator[Studio]:
    with open_studio(tmp_path_factory.mktemp("studio"), bundle_folder) as opened:
        yield opened


@dataclass
class Finished:
    """A request that the SDK submitted and followed to its end."""

    submitted: dict[str, Any]
    ended: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.submitted["id"])

    @property
    def task(self) -> str:
        return f"{self.id}-task_0"


@pytest.fixture(scope="module")
def finished(studio: Studio) -> Finished:
    wish = {
        "model_display_name": studio.api.model.name,
        "description": "By the SDK",
        "location": "Vienna",
        "spatial_domain": {"urls": [studio.scene("scene_2024-06-30.tif", size=256)]},
        "temporal_domain": ["2024-06-30"],
    }
    submitted = studio.sdk.submit_inference(wish)
    return Finished(submitted, studio.work_while_polling(submitted["id"]))


def test_keys_are_made_switched_and_deleted(studio: Studio) -> None:
    sdk = studio.sdk
    made = sdk.create_apikey()
    assert re.fullmatch(r"pak-\w{32}", made["value"])
    assert sdk.list_apikeys()["total_records"] == 2
    assert next(iter(sdk.list_apikeys(output="df")["id"])) == made["id"]
    assert "You already have 2 API Keys" in sdk.create_apikey()["detail"]
    switched = sdk.activate_apikey(made["id"], data={"active": False})
    assert switched["active"] is False
    assert sdk.activate_apikey(made["id"])["active"] is True
    assert sdk.delete_apikey(made["id"]) == {"reason": ""}
    assert sdk.list_apikeys()["total_records"] == 1


def test_a_request_is_accepted_as_pending(finished: Finished) -> None:
    answer = finished.submitted
    assert answer["status"] == "PENDING"
    assert answer["location"] == "Vienna"
    assert (answer["tasks_count_total"], answer["tasks_count_waiting"]) == (1, 1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", answer["created_at"])


def test_polling_ends_when_the_work_is_done(studio: Studio, finished: Finished) -> None:
    assert finished.ended["status"] == "COMPLETED"
    layers = studio.sdk.get_inference(finished.id)["geoserver_layers"]["predicted_layers"]
    assert {re.split("[-/]", layer["uri"])[-1] for layer in layers} == {"input_rgb", "pred"}
    assert all("<StyledLayerDescriptor" in layer["sld_body"] for layer in layers)
    listed = studio.sdk.list_inferences()
    assert finished.id in [item["id"] for item in listed["results"]]
    assert listed["page_count"] == len(listed["results"]) <= listed["total_records"]
    frame = studio.sdk.list_inferences(output="df")
    assert finished.id in set(frame["id"])


def test_tasks_have_their_steps(studio: Studio, finished: Finished) -> None:
    document = studio.sdk.get_inference_tasks(finished.id)
    assert [task["task_id"] for task in document["tasks"]] == [
        finished.task,
        f"{finished.id}-task_planning",
    ]
    steps = document["tasks"][0]["pipeline_steps"]
    assert [step["process_id"] for step in steps] == STEPS
    assert {step["status"] for step in steps} == {"FINISHED"}
    assert all(step["start_time"] <= step["end_time"] for step in steps)


def test_logs_of_a_step_can_be_read(studio: Studio, finished: Finished) -> None:
    logs = studio.sdk.get_task_step_logs(finished.task, "terratorch-inference")
    assert logs["status"] == "FINISHED"
    assert logs["warning"] is None
    text = requests.get(logs["step_log_url"], timeout=PATIENCE_S)
    assert text.status_code == 200
    assert text.text.startswith("===== terratorch-inference, attempt 1")


def test_the_output_is_opened_over_ranges(studio: Studio, finished: Finished) -> None:
    answer = studio.sdk.get_task_output_url(finished.task)
    assert answer["task_id"] == finished.task
    # As the SDK's widgets do: no key, only the link.
    with RemoteZip(answer["output_url"]) as archive:
        names = [name for name in archive.namelist() if name.endswith(".tif")]
        assert any(name.endswith("_pred.tif") for name in names)
        prediction = archive.read(next(name for name in names if name.endswith("_pred.tif")))
    with MemoryFile(prediction) as memory, memory.open() as dataset:
        assert (dataset.width, dataset.height) == (256, 256)
        assert dataset.crs == rasterio.crs.CRS.from_epsg(32633)


def test_a_file_is_shared_and_predicted_on(studio: Studio, tmp_path: Path) -> None:
    from geostudio_dagster_tests.conftest import write_scene

    scene = write_scene(tmp_path, "shared_2024-07-01.tif", size=256, seed=3)
    links = studio.sdk.upload_file(str(scene))
    assert studio.answers[-1].status_code == 200
    got = requests.get(links["download_url"], timeout=PATIENCE_S)
    assert got.content == scene.read_bytes()
    wish = {
        "model_id": studio.api.model.id,
        "spatial_domain": {"urls": [links["download_url"]]},
        "temporal_domain": ["2024-07-01"],
    }
    submitted = studio.sdk.submit_inference(wish)
    assert studio.work_while_polling(submitted["id"])["status"] == "COMPLETED"
    assert studio.sdk.delete_inference(submitted["id"]) == {"reason": ""}
    assert studio.sdk.get_inference(submitted["id"])["detail"] == "Inference not found"


@pytest.fixture(scope="module")
def tune(studio: Studio, finished: Finished) -> str:
    """A tune that the SDK uploaded and followed until it is ready."""
    make_upload(studio.files / "tune")
    (studio.files / "tune" / CKPT).rename(studio.files / "tune" / "weights.ckpt")
    started = studio.sdk.upload_completed_tunes(things(studio, finished, "").tune_files())
    assert re.fullmatch("geotune-[a-z0-9]{22}", started["tune_id"])
    assert studio.sdk.get_tune(started["tune_id"])["status"] == "Pending"
    studio.driver.tick()
    return str(started["tune_id"])


def things(studio: Studio, finished: Finished, tune: str) -> Things:
    return Things(studio, finished.id, finished.task, tune, studio.files.parent)


def test_a_tune_is_uploaded_and_tried_out(studio: Studio, finished: Finished, tune: str) -> None:
    assert studio.sdk.poll_finetuning_until_finished(tune)["status"] == "Finished"
    assert tune in [item["id"] for item in studio.sdk.list_tunes()["results"]]
    tried = studio.sdk.try_out_tune(
        tune,
        {
            "location": "Vienna",
            "spatial_domain": {"urls": [studio.scene("t_2024-06-30.tif", size=150, bands=BANDS)]},
            "temporal_domain": ["2024-06-30"],
        },
    )
    assert tried["fine_tuning_id"] == tune
    assert studio.work_while_polling(tried["id"])["status"] == "COMPLETED"


def test_a_model_is_registered_deployed_and_used(
    studio: Studio, finished: Finished, tune: str
) -> None:
    files = things(studio, finished, tune).tune_files()
    made = studio.sdk.create_model({"display_name": "Burn-scars", "description": "By the SDK"})
    assert (made["status"], made["version"], made["latest"]) == ("PENDING", 1.0, True)
    wish = {
        "model_id": made["id"],
        "spatial_domain": {"urls": [studio.scene("m_2024-06-30.tif", size=150, bands=BANDS)]},
        "temporal_domain": ["2024-06-30"],
    }
    assert "Ensure model was deployed" in studio.sdk.submit_inference(wish)["detail"]["msg"]
    deployed = studio.sdk.deploy_model(
        made["id"],
        {
            "model_configs_url": files["tune_config_url"],
            "model_checkpoint_url": files["tune_checkpoint_url"],
        },
    )
    assert deployed["status"] == "DEPLOY_REQUESTED"
    studio.driver.tick()
    assert studio.sdk.get_model(made["id"])["status"] == "COMPLETED"
    submitted = studio.sdk.submit_inference(wish)
    assert studio.work_while_polling(submitted["id"])["status"] == "COMPLETED"


TABLE = Path(__file__).parents[3] / "deploy" / "docs" / "api-compatibility.md"


def test_the_table_of_methods_tells_what_happens(
    studio: Studio, finished: Finished, tune: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(studio.files.parent)
    told = dict(re.findall(r"^\| `(\w+)` \| [^|]* \| ([^|]+?) \|", TABLE.read_text(), re.M))
    assert set(CALLS) == public_methods(studio.sdk)
    known = things(studio, finished, tune)
    found = {name: answer_to(name, studio.sdk, known) for name in CALLS}
    assert found == told


def test_the_calls_of_the_qgis_plugin(studio: Studio, finished: Finished) -> None:
    base = f"{studio.api.url}/studio-gateway"
    session = requests.Session()
    session.headers["X-Api-Key"] = studio.api.key("qgis@example.org", admin=True)
    listed = session.get(f"{base}/v2/inference/?limit=100&skip=0", timeout=PATIENCE_S)
    assert (listed.status_code, listed.history) == (200, [])
    assert finished.id in [item["id"] for item in listed.json()["results"]]
    models = session.get(f"{base}/v2/models", timeout=PATIENCE_S).json()["results"]
    shown = [item for item in models if item["display_name"] != "geofm-sandbox-models"]
    model = next(item for item in shown if item["display_name"] == studio.api.model.name)
    body = {
        "model_id": model["id"],
        "model_display_name": model["display_name"],
        "description": "By QGIS",
        "location": "Vienna",
        "spatial_domain": {"urls": [f"{studio.files_url}/scene_2024-06-30.tif"]},
        "temporal_domain": ["2024-06-30"],
    }
    made = session.post(f"{base}/v2/inference/", json=body, timeout=PATIENCE_S)
    assert (made.status_code, made.history) == (201, [])
    tasks = session.get(f"{base}/v2/inference/{finished.id}/tasks", timeout=PATIENCE_S).json()[
        "tasks"
    ]
    output = session.get(f"{base}/v2/tasks/{tasks[0]['task_id']}/output", timeout=PATIENCE_S).json()
    archive = requests.get(output["output_url"], timeout=PATIENCE_S)
    assert archive.content[:2] == b"PK"
    refused = session.post(
        f"{base}/v2/inference/", json={**body, "spatial_domain": {}}, timeout=PATIENCE_S
    )
    assert refused.status_code == 422
    assert all(item["msg"] for item in refused.json()["detail"])
