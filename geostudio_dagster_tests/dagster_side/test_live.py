"""The installation as it runs: daemon, run queue, webserver and gateway as real processes."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
import torch
from dagster import AssetKey, DagsterEventType, DagsterInstance, RunsFilter
from dagster_graphql import DagsterGraphQLClient
from torch import nn

from geostudio_dagster import services
from geostudio_dagster.defs.processor_assets import processor_name
from geostudio_dagster.defs.processor_watcher import TICK_S
from geostudio_dagster.installation import Installation
from geostudio_dagster.models.registration import register_bundle
from geostudio_dagster.pipeline.cancelling import EXIT_CODE
from geostudio_dagster.settings import Settings, ShardSettings
from geostudio_dagster.signing import map_link
from geostudio_dagster.storage import sha256_of
from geostudio_dagster_tests.conftest import write_scene
from geostudio_dagster_tests.dagster_side.patience import PATIENCE_S, get, until
from geostudio_dagster_tests.ports import port_for_a_process
from geostudio_dagster_tests.prediction.builders import write_bundle
from geostudio_dagster_tests.scripts import DROP, upload

ROOT = Path(__file__).resolve().parents[2]
LEASE_S = 20  # of silence; torch alone can take that long to import when the machine is busy
OVER = {"COMPLETED", "COMPLETED_WITH_ERRORS", "FAILED", "STOPPED"}

pytestmark = [pytest.mark.live, pytest.mark.timeout(1800)]


@dataclass(frozen=True)
class Live:
    """A running installation and the ways to talk to it."""

    installation: Installation
    instance: DagsterInstance
    client: DagsterGraphQLClient
    webserver: str
    gateway: str
    scenes: Path

    def document(self, scene: Path, **more: object) -> dict[str, object]:
        urls = [str(scene)]
        return {
            "id": str(uuid4()),
            "model": "demo-land-cover",
            "spatial_domain": {"urls": urls},
            **more,
        }

    def launch(self, document: dict[str, object]) -> str:
        config = {"ops": {"plan_request": {"config": {"request": document}}}}
        self.client.submit_job_execution("plan_request_job", run_config=config)
        return str(document["id"])

    def status(self, request: str) -> str:
        known = {record.id: record for record in self.installation.catalog.requests(limit=1000)}
        return str(known[request].status) if request in known else "UNKNOWN"

    def until_over(self, request: str) -> str:
        until(lambda: self.status(request) in OVER, f"{request} is over")
        return self.status(request)

    def is_worked_on(self, request: str) -> bool:
        tasks = self.installation.catalog.tasks(request)
        return any(step.in_hand for task in tasks for step in task.steps)

    def shows(self, owner: str, name: str) -> bool:
        """Whether the webserver shows the processor's asset."""
        query = "query Q($k: AssetKeyInput!) { assetNodeOrError(assetKey: $k) { __typename } }"
        variables = {"k": {"path": ["processors", processor_name(owner, name)]}}
        body = {"query": query, "variables": variables}
        answer = httpx.post(f"{self.webserver}/graphql", json=body, timeout=PATIENCE_S).json()
        return bool(answer["data"]["assetNodeOrError"]["__typename"] == "AssetNode")

    def looks_of_the_watcher(self, since: float) -> int:
        """How often the daemon looked for changed processors since that second of the epoch."""
        states = self.instance.all_instigator_state()
        (watcher,) = (state for state in states if state.name == "processor_watcher")
        origin, selector = watcher.instigator_origin_id, watcher.selector_id
        return len(self.instance.get_ticks(origin, selector, after=since))

    def run_asset(self, location: str, path: list[str], config: dict[str, object]) -> str:
        """Id of a run of one asset, launched as the launchpad does."""
        mutation = """
          mutation Launch($params: ExecutionParams!) {
            launchRun(executionParams: $params) {
              __typename
              ... on LaunchRunSuccess { run { runId } }
              ... on PythonError { message }
              ... on RunConfigValidationInvalid { errors { message } }
            }
          }"""
        params = {
            "selector": {
                "repositoryLocationName": location,
                "repositoryName": "__repository__",
                "jobName": "__ASSET_JOB",
                "assetSelection": [{"path": path}],
            },
            "runConfigData": config,
            "mode": "default",
        }
        body = {"query": mutation, "variables": {"params": params}}
        answer = httpx.post(f"{self.webserver}/graphql", json=body, timeout=PATIENCE_S).json()
        launched = answer["data"]["launchRun"]
        assert launched["__typename"] == "LaunchRunSuccess", answer
        return str(launched["run"]["runId"])

    def run_pid(self, shard: str) -> int:
        """Process id of the run that works on the shard, as Dagster's event log has it."""
        run_id = self.installation.catalog.shard(shard).run_id
        assert run_id is not None
        for entry in self.instance.all_logs(run_id, of_type=DagsterEventType.ENGINE_EVENT):
            found = re.search(r"pid: (\d+)", entry.message)
            if found:
                return int(found.group(1))
        raise AssertionError(f"run {run_id} never named its process")


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, bundle_folder: Path) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("live")
    ports = {name: port_for_a_process() for name in ("webserver", "gateway")}
    gateway_url = f"http://127.0.0.1:{ports['gateway']}"
    settings = Settings(
        data_folder=folder / "data",
        gateway_url=gateway_url,
        shards=ShardSettings(lease_s=LEASE_S, retry_delay_s=0.1),
    )
    (folder / "workspace.yaml").write_bytes((ROOT / "workspace.yaml").read_bytes())
    with pytest.MonkeyPatch.context() as patch, Installation.open(settings) as installation:
        patch.setenv("GEOSTUDIO_SHARDS__LEASE_S", str(LEASE_S))
        patch.setenv("GEOSTUDIO_SHARDS__RETRY_DELAY_S", "0.1")
        register_bundle(installation, bundle_folder, owner="tests")
        home = services.dagster_home(settings, ROOT / "dagster.yaml")
        wanted = [
            services.webserver(folder / "workspace.yaml", ports["webserver"]),
            services.daemon(folder / "workspace.yaml"),
            services.gateway(ports["gateway"]),
        ]
        with (
            services.running(wanted, settings, home),
            DagsterInstance.from_config(str(home)) as instance,
        ):
            yield Live(
                installation,
                instance,
                DagsterGraphQLClient("127.0.0.1", port_number=ports["webserver"]),
                f"http://127.0.0.1:{ports['webserver']}",
                gateway_url,
                settings.data_folder / "scenes",
            )


def test_a_graphql_launch_ends_on_the_map(live: Live) -> None:
    scene = write_scene(live.scenes, "graphql_2024-06-30.tif", size=256)
    request = live.launch(live.document(scene, name="By GraphQL"))
    assert live.until_over(request) == "COMPLETED"
    link = map_link(live.installation.settings, request)
    assert get(f"{live.gateway}/maps/{request}").status_code == 401
    page = get(link)
    assert page.status_code == 200
    assert "By GraphQL" in page.text
    layers = get(link.replace("/maps/", "/layers/")).json()
    assert {layer["name"] for layer in layers["layers"]} == {"input_rgb", "pred"}


def test_an_inbox_file_is_picked_up(live: Live) -> None:
    scene = write_scene(live.scenes, "inbox.tif", size=256)
    document = live.document(scene)
    inbox = live.installation.settings.inbox
    inbox.mkdir(parents=True, exist_ok=True)
    (inbox / "request.json").write_text(json.dumps(document))
    (inbox / "broken.json").write_text('{"model": "demo-land-cover", "colour": 1}')
    rejected = inbox / "rejected" / "broken.reason.txt"
    until(rejected.exists, "the broken file is rejected")
    assert "is missing" in rejected.read_text() or "not a known field" in rejected.read_text()
    assert live.until_over(str(document["id"])) == "COMPLETED"
    assert (inbox / "accepted" / "request.json").exists()


def test_one_shard_is_redone_by_graphql_and_its_layer_follows(live: Live) -> None:
    first = write_scene(live.scenes, "redo_1.tif", size=256, seed=1)
    second = write_scene(live.scenes, "redo_2.tif", size=256, seed=2)
    document = live.document(first, shard_size=1)
    document["spatial_domain"] = {"urls": [str(first), str(second)]}
    request = live.launch(document)
    assert live.until_over(request) == "COMPLETED"
    catalog = live.installation.catalog
    before = [task.step("terratorch-inference").finished_at for task in catalog.tasks(request)]
    published = catalog.layers(request)[0].published_at
    mutation = """
      mutation Redo($params: ExecutionParams!) {
        launchRun(executionParams: $params) {
          __typename
          ... on LaunchRunSuccess { run { runId } }
          ... on PythonError { message }
        }
      }"""
    params = {
        "selector": {
            "repositoryLocationName": "geostudio_dagster",
            "repositoryName": "__repository__",
            "jobName": "__ASSET_JOB",
            "assetSelection": [{"path": ["predictions"]}],
        },
        "runConfigData": {},
        "mode": "default",
        "executionMetadata": {"tags": [{"key": "dagster/partition", "value": f"{request}/00001"}]},
    }
    body = {"query": mutation, "variables": {"params": params}}
    answer = httpx.post(f"{live.webserver}/graphql", json=body, timeout=PATIENCE_S).json()
    assert answer["data"]["launchRun"]["__typename"] == "LaunchRunSuccess", answer
    until(lambda: catalog.layers(request)[0].published_at > published, "the layer is made anew")
    assert live.until_over(request) == "COMPLETED"
    after = [task.step("terratorch-inference").finished_at for task in catalog.tasks(request)]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False]


def test_a_killed_run_is_taken_up_again_with_equal_bytes(live: Live) -> None:
    scene = write_scene(live.scenes, "kill.tif", size=2600)
    request = live.launch(live.document(scene))
    shard, task = f"{request}/00000", f"{request}-task_0"
    catalog = live.installation.catalog

    def predicting() -> bool:
        steps = [t.step("terratorch-inference") for t in catalog.tasks(request)]
        return any(step.in_hand and step.status == "RUNNING" for step in steps)

    until(predicting, "the prediction is in hand")
    os.kill(live.run_pid(shard), signal.SIGKILL)
    assert live.until_over(request) == "COMPLETED"
    assert catalog.task(task).step("terratorch-inference").crashes == 1
    assert catalog.shard(shard).attempt >= 1
    killed = sha256_of(live.installation.path_of(catalog.artifact(task, "prediction")))

    job = live.client.submit_job_execution("shard_job", tags={"dagster/partition": shard})
    until(lambda: catalog.task(task).status != "FINISHED", f"run {job} redoes the task")
    assert live.until_over(request) == "COMPLETED"
    redone = sha256_of(live.installation.path_of(catalog.artifact(task, "prediction")))
    assert redone == killed
    scratch = live.installation.settings.data_folder / "scratch"
    assert [path for path in scratch.rglob("*") if path.is_file()] == []


def test_a_cancelled_run_stops_and_stays_stopped(live: Live) -> None:
    scene = write_scene(live.scenes, "cancel.tif", size=4000)
    request = live.launch(live.document(scene))
    catalog = live.installation.catalog

    def predicting() -> bool:
        return any(t.step("terratorch-inference").in_hand for t in catalog.tasks(request))

    until(predicting, "the prediction is in hand")
    catalog.cancel(request)
    until(lambda: live.status(request) == "STOPPED", "the request is stopped")
    assert all(task.status == "STOPPED" for task in catalog.tasks(request))
    assert live.installation.catalog.layers(request) == []


class Endless(nn.Module):
    """A forward pass that says that it began, and never returns from native code."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        print("no end of it")  # noqa: T201
        while bool(x.sum() * 0 == 0):
            x = x * 1
        return x


def test_a_forward_pass_without_end_is_ended_by_a_cancellation(live: Live, tmp_path: Path) -> None:
    bands = [{"name": name} for name in ("B02", "B03", "B04", "B08")]
    bundle = write_bundle(tmp_path / "endless", Endless(), bands=bands, name="endless")
    model = register_bundle(live.installation, bundle.folder, owner="tests")
    scene = write_scene(live.scenes, "endless.tif", size=256)
    printed = live.installation.settings.data_folder / "dagster" / "storage"
    with rest(live) as client:
        request = post(live, client, scene, model.name)
        shard = f"{request}/00000"
        until(lambda: live.is_worked_on(request), "the request is worked on")
        run_id = live.installation.catalog.shard(shard).run_id

        def computes() -> bool:
            logs = (printed / str(run_id)).rglob("*.out")
            return any("no end of it" in log.read_text() for log in logs)

        until(computes, "the forward pass has begun")
        pid = live.run_pid(shard)
        assert client.post(f"/v2/inference/{request}/cancel").status_code == 202
        until(lambda: live.status(request) == "STOPPED", "the request is stopped")
    (task,) = live.installation.catalog.tasks(request)
    assert task.status == "STOPPED"
    assert not Path(f"/proc/{pid}").exists()
    # It was not interrupted, which is how a run of Dagster's ends otherwise.
    events = live.instance.all_logs(str(run_id), of_type=DagsterEventType.ENGINE_EVENT)
    assert any(f"exited with code {EXIT_CODE}" in event.message for event in events)


def test_an_uploaded_processor_shows_within_seconds_and_runs_alone(live: Live) -> None:
    scene = write_scene(live.scenes, "processor.tif", size=256)
    request = live.launch(live.document(scene))
    catalog = live.installation.catalog

    drop = upload(live.installation, "drop-class", DROP)
    since = time.time()
    until(lambda: live.shows(drop.owner, drop.name), "the processor shows")
    # Two looks of the watcher are ten seconds; what else it takes is the machine's own pace.
    assert 2 * TICK_S <= 10
    assert live.looks_of_the_watcher(since) <= 2

    assert live.until_over(request) == "COMPLETED"
    name = processor_name(drop.owner, drop.name)
    config = {"task": f"{request}-task_0", "parameters": {"drop": 1}}
    run = live.run_asset("processors", ["processors", name], {"ops": {name: {"config": config}}})
    role = f"alone/{run[:8]}/processed.tif"

    def made() -> bool:
        return any(artifact.name == role for artifact in catalog.artifacts(f"{request}-task_0"))

    until(made, f"run {run} is over")
    assert catalog.artifact(f"{request}-task_0", role).metadata["processor"] == drop.label


def rest(live: Live) -> httpx.Client:
    """A client of the gateway with a key of its own."""
    _, key = live.installation.catalog.create_key(f"{uuid4()}@example.org", days=1)
    return httpx.Client(base_url=live.gateway, headers={"X-API-Key": key}, timeout=PATIENCE_S)


def post(live: Live, client: httpx.Client, scene: Path, name: str = "demo-land-cover") -> str:
    """The id of a request sent over REST."""
    model = live.installation.catalog.model(name)
    body = {"model_id": model.id, "spatial_domain": {"urls": [str(scene)]}}
    answer = client.post("/v2/inference", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def test_a_request_over_rest_is_launched_without_waiting_for_a_sensor(live: Live) -> None:
    scene = write_scene(live.scenes, "rest_2024-06-30.tif", size=256, seed=11)
    with rest(live) as client:
        request = post(live, client, scene)
        assert live.until_over(request) == "COMPLETED"
        assert client.get(f"/v2/inference/{request}").json()["status"] == "COMPLETED"
    runs = live.instance.get_runs(RunsFilter(tags={"geostudio/request": request}))
    # One run, which no sensor asked for: planning and publishing needed none of their own.
    assert [run.job_name for run in runs] == ["shard_job"]
    assert "dagster/sensor_name" not in runs[0].tags
    for asset in ("request_plan", "shard_settled", "geoserver_layers"):
        known = live.instance.get_materialized_partitions(AssetKey(asset))
        assert any(key.startswith(request) for key in known), asset


def test_a_cancelled_request_is_stopped_and_stays_so(live: Live) -> None:
    scene = write_scene(live.scenes, "cancelled.tif", size=6000, seed=12)
    with rest(live) as client:
        request = post(live, client, scene)
        shard = f"{request}/00000"
        until(lambda: live.is_worked_on(request), "the request is worked on")
        run_id = live.installation.catalog.shard(shard).run_id
        assert client.post(f"/v2/inference/{request}/cancel").status_code == 202
        until(lambda: live.status(request) == "STOPPED", "the request is stopped")

        def is_over() -> bool:
            run = live.instance.get_run_by_id(str(run_id))
            return run is not None and run.is_finished

        until(is_over, "its run is over")
        assert client.get(f"/v2/inference/{request}").json()["status"] == "STOPPED"
