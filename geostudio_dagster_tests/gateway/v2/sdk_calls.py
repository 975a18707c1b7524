"""One call of every public method of GEOStudio's SDK."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geostudio

from geostudio_dagster_tests.gateway.v2.studio import Studio

Call = Callable[[geostudio.Client, "Things"], Any]
# What the SDK's methods are made of; users call none of them.
PLUMBING = {"http_get", "http_post", "http_put", "http_put_file", "http_patch", "http_delete"}
PLUMBING |= {"load_classes"}


@dataclass
class Things:
    """Ids of what is there, for the calls to name."""

    studio: Studio
    inference: str
    task: str
    tune: str
    folder: Path

    def file(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(text)
        return str(path)

    def key(self) -> str:
        """Another key of the user's, to be switched or deleted."""
        for known in self.studio.sdk.list_apikeys()["results"][:-1]:
            self.studio.sdk.delete_apikey(known["id"])
        made = self.studio.sdk.create_apikey()
        self.studio.answers.clear()
        return str(made["id"])

    def model(self) -> str:
        """A card without files."""
        made = self.studio.sdk.create_model({"display_name": f"card-{uuid.uuid4().hex[:8]}"})
        self.studio.answers.clear()
        return str(made["id"])

    def wish(self) -> dict[str, Any]:
        return {
            "model_id": self.studio.api.model.id,
            "location": "Vienna",
            "spatial_domain": {"urls": [f"{self.studio.files_url}/scene_2024-06-30.tif"]},
            "temporal_domain": ["2024-06-30"],
        }

    def request(self) -> str:
        """A request of its own."""
        made = self.studio.sdk.submit_inference(self.wish())
        self.studio.answers.clear()
        return str(made["id"])

    def uploaded(self) -> str:
        """A tune of its own."""
        made = self.studio.sdk.upload_completed_tunes(self.tune_files())
        self.studio.answers.clear()
        return str(made["tune_id"])

    def tune_files(self) -> dict[str, str]:
        return {
            "name": "burn-scars",
            "description": "Made elsewhere",
            "tune_config_url": f"{self.studio.files_url}/tune/config_deploy.yaml",
            "tune_checkpoint_url": f"{self.studio.files_url}/tune/weights.ckpt",
        }


SOME = str(uuid.uuid4())
TASK = {"name": "t", "content": "eA=="}
PARAMS = {"backbone": "b"}
ADVICE = {
    "collections": ["sentinel-2-l2a"],
    "dates": ["2024-06-30"],
    "bbox": [[16, 48, 16.1, 48.1]],
}
SCAN = {
    "dataset_url": "https://example.org/d.zip",
    "label_suffix": "_l",
    "training_data_suffixes": [],
}
DATASET = {
    "dataset_name": "d",
    "label_suffix": "_l",
    "dataset_url": "https://example.org/d.zip",
    "description": "",
    "purpose": "Segmentation",
}
TUNE = {"name": "tune", "dataset_id": "d", "tune_template_id": SOME}


def _hpo(sdk: geostudio.Client, it: Things) -> Any:
    metadata = {"name": "tune", "dataset_id": "d"}
    config = it.file("hpo.yaml", "a: 1")
    answer = sdk.submit_hpo_tune({"tune_metadata": metadata, "config_file": config})
    # The SDK forgets its content type in this call, and sends none from now on.
    assert sdk.upload_completed_tunes(it.tune_files())["tune_id"]
    it.studio.answers.pop()
    return answer


CALLS: dict[str, Call] = {
    "list_apikeys": lambda sdk, _: sdk.list_apikeys(),
    "create_apikey": lambda sdk, it: (sdk.delete_apikey(it.key()), sdk.create_apikey()),
    "activate_apikey": lambda sdk, it: sdk.activate_apikey(it.key(), {"active": False}),
    "delete_apikey": lambda sdk, it: sdk.delete_apikey(it.key()),
    "create_model": lambda sdk, _: sdk.create_model({"display_name": "a-card"}),
    "list_models": lambda sdk, _: sdk.list_models(),
    "update_model": lambda sdk, it: sdk.update_model(
        it.model(), {"display_name": "b-card", "latest": False}
    ),
    "get_model": lambda sdk, it: sdk.get_model(it.studio.api.model.id),
    "deploy_model": lambda sdk, it: sdk.deploy_model(
        it.model(),
        {
            "model_configs_url": it.tune_files()["tune_config_url"],
            "model_checkpoint_url": it.tune_files()["tune_checkpoint_url"],
        },
    ),
    "delete_model": lambda sdk, it: sdk.delete_model(it.model()),
    "submit_inference": lambda sdk, it: sdk.submit_inference(it.wish()),
    "list_inferences": lambda sdk, _: sdk.list_inferences(),
    "get_inference": lambda sdk, it: sdk.get_inference(it.inference),
    "delete_inference": lambda sdk, it: sdk.delete_inference(it.request()),
    "get_inference_tasks": lambda sdk, it: sdk.get_inference_tasks(it.inference),
    "get_task_output_url": lambda sdk, it: sdk.get_task_output_url(it.task),
    "get_task_step_logs": lambda sdk, it: sdk.get_task_step_logs(it.task, "terratorch-inference"),
    "inference_task_status_df": lambda sdk, it: sdk.inference_task_status_df(it.inference),
    "poll_inference_until_finished": lambda sdk, it: sdk.poll_inference_until_finished(
        it.inference
    ),
    "check_data_availability": lambda sdk, _: sdk.check_data_availability("sentinel_aws", ADVICE),
    "list_datasource_collections": lambda sdk, _: sdk.list_datasource_collections("sentinel_aws"),
    "list_datasource": lambda sdk, _: sdk.list_datasource(connector="sentinel_aws"),
    "get_datasource": lambda sdk, _: sdk.get_datasource(SOME),
    "get_fileshare_links": lambda sdk, _: sdk.get_fileshare_links("scene.tif"),
    "upload_file_to_url": lambda sdk, it: sdk.upload_file_to_url(
        sdk.get_fileshare_links("note.txt")["upload_url"], it.file("note.txt", "a")
    ),
    "upload_file": lambda sdk, it: sdk.upload_file(it.file("second.txt", "b")),
    "get_geoserver_url": lambda sdk, _: sdk.get_geoserver_url(),
    "list_tunes": lambda sdk, _: sdk.list_tunes(),
    "get_tune": lambda sdk, it: sdk.get_tune(it.tune),
    "update_tune": lambda sdk, it: sdk.update_tune(it.tune, {"description": "Tried"}),
    "delete_tune": lambda sdk, it: sdk.delete_tune(it.uploaded()),
    "submit_tune": lambda sdk, _: sdk.submit_tune(dict(TUNE)),
    "submit_hpo_tune": _hpo,
    "upload_completed_tunes": lambda sdk, it: sdk.upload_completed_tunes(it.tune_files()),
    "try_out_tune": lambda sdk, it: sdk.try_out_tune(it.tune, it.wish()),
    "download_tune": lambda sdk, it: sdk.download_tune(it.tune),
    "get_mlflow_metrics": lambda sdk, it: sdk.get_mlflow_metrics(it.tune),
    "get_tune_metrics": lambda sdk, it: sdk.get_tune_metrics(it.tune),
    "get_tune_metrics_df": lambda sdk, it: sdk.get_tune_metrics_df(it.tune),
    "poll_finetuning_until_finished": lambda sdk, it: sdk.poll_finetuning_until_finished(it.tune),
    "list_tune_templates": lambda sdk, _: sdk.list_tune_templates(),
    "create_task": lambda sdk, _: sdk.create_task(TASK),
    "get_task": lambda sdk, _: sdk.get_task(SOME),
    "delete_task": lambda sdk, _: sdk.delete_task(SOME),
    "get_task_template": lambda sdk, _: sdk.get_task_template(SOME, output="file"),
    "update_task": lambda sdk, it: sdk.update_task(SOME, it.file("task.yaml", "a: 1")),
    "update_task_schema": lambda sdk, _: sdk.update_task_schema(SOME, {}),
    "get_task_param_defaults": lambda sdk, _: sdk.get_task_param_defaults(SOME),
    "check_task_content": lambda sdk, _: sdk.check_task_content(SOME, "d", SOME),
    "render_template": lambda sdk, _: sdk.render_template(SOME, "d"),
    "list_datasets": lambda sdk, _: sdk.list_datasets(),
    "pre_scan_dataset": lambda sdk, _: sdk.pre_scan_dataset(SCAN),
    "get_sample_images": lambda sdk, _: sdk.get_sample_images("d"),
    "update_dataset": lambda sdk, _: sdk.update_dataset("d", {"description": "x"}),
    "get_dataset": lambda sdk, _: sdk.get_dataset("d"),
    "delete_dataset": lambda sdk, _: sdk.delete_dataset("d"),
    "onboard_dataset": lambda sdk, _: sdk.onboard_dataset(DATASET),
    "poll_onboard_dataset_until_finished": lambda sdk, _: sdk.poll_onboard_dataset_until_finished(
        "d"
    ),
    "list_base_models": lambda sdk, _: sdk.list_base_models(),
    "create_base_model": lambda sdk, _: sdk.create_base_model({"name": "b", "description": ""}),
    "get_base_model": lambda sdk, _: sdk.get_base_model(SOME),
    "update_base_model_params": lambda sdk, _: sdk.update_base_model_params(SOME, PARAMS),
    "get_training_image": lambda sdk, _: sdk.get_training_image("a.png", SOME),
    "list_tuning_artefacts": lambda sdk, it: sdk.list_tuning_artefacts(it.tune),
    "get_tuning_artefacts": lambda sdk, it: sdk.get_tuning_artefacts(it.tune),
    # Asks a GeoServer beside the studio's user interface, which there is none of here.
    "get_layer_timestamps": lambda sdk, it: sdk.get_layer_timestamps(f"geofm:{it.inference}-pred"),
}


def public_methods(sdk: geostudio.Client) -> set[str]:
    """What users of the SDK call."""
    names = {name for name in dir(sdk) if not name.startswith("_")}
    return {name for name in names if callable(getattr(sdk, name))} - PLUMBING


def answer_to(name: str, sdk: geostudio.Client, things: Things) -> str:
    """Statuses that the gateway answers to one method, and whether the SDK could go on.

    Such as ``200``, ``404``, or ``404, KeyError`` where the SDK fails at what it was told.
    """
    things.studio.answers.clear()
    failure = []
    try:
        CALLS[name](sdk, things)
    except Exception as error:
        failure = [type(error).__name__]
    last = [str(answer.status_code) for answer in things.studio.answers][-1:]
    return ", ".join([*last, *failure]) or "no call"
