"""Scripts in pods from launch to deletion: Dagster's Pipes client against an emulated cluster."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes.config.kube_config
import numpy as np
import pytest
import rasterio

from geostudio_dagster.catalog import ModelRecord, ProcessorRecord
from geostudio_dagster.defs.processor_assets import processor_key
from geostudio_dagster.installation import Installation
from geostudio_dagster_tests.conftest import MakeScene
from geostudio_dagster_tests.dagster_side.test_processor_location import failure_of, launched
from geostudio_dagster_tests.driving import Driver, path_of, submit
from geostudio_dagster_tests.emulators.kubernetes_api import ClusterEmulator, serving
from geostudio_dagster_tests.processors.attacks.test_attacks import isolated_or_skip
from geostudio_dagster_tests.scripts import COUNT, DROP, FAIL, upload

SPACE = "processors"
HEAD = "import json, os, sys, time\nif __name__ == '__main__':\n"


@pytest.fixture
def task(
    installation: Installation, model: ModelRecord, make_scene: MakeScene, driver: Driver
) -> str:
    """A task with a prediction."""
    request = submit(installation, [make_scene("a.tif")], model)
    driver.until_over(request)
    return f"{request}-task_0"


@pytest.fixture
def cluster(
    installation: Installation, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ClusterEmulator]:
    """What runs once ``task`` has its prediction runs here."""
    isolated_or_skip()
    pods = {"DATA_CLAIM": "data", "IMAGE": "processors:1", "PYTHON": sys.executable}
    pods |= {"NAMESPACE": SPACE, "POLL_S": "0.05"}
    for name, value in pods.items():
        monkeypatch.setenv(f"GEOSTUDIO_PROCESSORS__PODS__{name}", value)
    monkeypatch.setenv("GEOSTUDIO_EXECUTION", "k8s")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with serving(tmp_path, {"data": installation.settings.data_folder}) as (found, kubeconfig):
        location = "KUBE_CONFIG_DEFAULT_LOCATION"  # read from KUBECONFIG once, at its import
        monkeypatch.setattr(kubernetes.config.kube_config, location, str(kubeconfig))
        yield found


def outcome(processor: ProcessorRecord, driver: Driver, **config: Any) -> str:
    """What went wrong in a run of the processor alone; empty if nothing did."""
    with launched(processor, driver.instance, **config) as result:
        return "" if result.success else failure_of(result)


def test_a_script_runs_in_a_pod_of_its_own_and_its_files_come_back(
    installation: Installation, driver: Driver, cluster: ClusterEmulator, task: str
) -> None:
    drop = upload(installation, "drop-class", DROP, gpu=False)
    with launched(drop, driver.instance, task=task, parameters={"drop": 1}) as result:
        assert result.success
        role = f"alone/{result.run_id[:8]}/processed.tif"
    with rasterio.open(path_of(installation, task, "prediction")) as file:
        prediction = file.read(1)
    with rasterio.open(path_of(installation, task, role)) as file:
        np.testing.assert_array_equal(file.read(1), np.where(prediction == 1, 255, prediction))
    event = driver.instance.get_latest_materialization_event(processor_key(drop.owner, drop.name))
    assert event is not None and event.asset_materialization is not None
    metadata = {key: value.value for key, value in event.asset_materialization.metadata.items()}
    assert metadata["isolation"] == "pod"
    assert metadata["printed"]["dropped"] == int((prediction == 1).sum())
    (pod,) = cluster.created
    assert cluster.deleted == [pod["metadata"]["name"]]
    assert cluster.pods == {}
    assert pod["metadata"]["namespace"] == SPACE
    scratch = installation.settings.data_folder / "scratch"
    assert [path for path in scratch.rglob("*") if path.is_file()] == []


def test_rasters_vectors_and_tables_are_collected_from_a_pod(
    installation: Installation, driver: Driver, cluster: ClusterEmulator, task: str
) -> None:
    count = upload(installation, "count", COUNT)
    with launched(count, driver.instance, task=task, parameters={"factor": 2.5}) as result:
        assert result.success
        start = f"alone/{result.run_id[:8]}/"
    found = installation.catalog.artifacts_in_role(start, [task])[task]
    assert {artifact.name.removeprefix(start): artifact.metadata["kind"] for artifact in found} == {
        "counts.csv": "table",
        "outline.geojson": "vector",
        "scaled.tif": "raster",
    }


def test_a_script_sees_its_parameters_and_nothing_of_cluster_or_run(
    installation: Installation, driver: Driver, cluster: ClusterEmulator, task: str
) -> None:
    code = HEAD + (
        "    seen = {'parameters': json.loads(sys.argv[3]), 'environment': sorted(os.environ),\n"
        "            'user': os.getuid(), 'job': sorted(os.listdir('/job')),\n"
        "            'inputs': os.listdir('/job/input')}\n"
        "    try:\n"
        "        open(sys.argv[1], 'r+b')\n"
        "    except OSError as error:\n"
        "        seen['input'] = type(error).__name__\n"
        "    print(json.dumps(seen))\n"
    )
    look = upload(installation, "look", code, contract="positional")
    given = {"a": "$(HOSTNAME) $$(HOME) ö", "b": None, "c": [True, {"d": "x; rm -rf /"}]}
    with launched(look, driver.instance, task=task, parameters=given) as result:
        assert result.success
    event = driver.instance.get_latest_materialization_event(processor_key(look.owner, look.name))
    assert event is not None and event.asset_materialization is not None
    seen = event.asset_materialization.metadata["printed"].value
    assert seen["parameters"] == given
    assert set(seen["environment"]) - {"LC_CTYPE"} == {
        *("GEOSTUDIO_INPUT", "GEOSTUDIO_OUTPUT", "GEOSTUDIO_PARAMETERS", "HOME", "TMPDIR", "LANG"),
        *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "GDAL_NUM_THREADS"),
    }
    assert seen["user"] != 0
    assert seen["input"] in {"OSError", "PermissionError"}
    assert seen["job"] == ["input", "output", "script", "work"]
    assert seen["inputs"] == [f"{task}_pred.tif"]


FLOOD = """    for n in range(99):
        open(f'/job/output/{n}.bin', 'wb').write(bytes(1 << 20))
    time.sleep(600)
"""


@pytest.mark.parametrize(
    ("body", "limits", "words"),
    [
        ("    sys.exit('no cloud band')\n", {}, ("exit code 1", "no cloud band")),
        ("    print('late', flush=True)\n    time.sleep(600)\n", {"wall_s": 1}, ("1 s", "late")),
        (
            "    print('busy', flush=True)\n    while True:\n        pass\n",
            {"cpu_s": 1},
            ("used more than 1 s of processor time and was ended", "busy"),
        ),
        (FLOOD, {"output_bytes": 9 << 20}, ("filled more than 9 MiB of disk",)),
        (
            "    open('/job/output/x.bin', 'wb').truncate(10 << 20)\n",
            {"file_bytes": 9 << 20},
            ("File too large",),
        ),
        ("    open('/job/output/x.tif', 'w').write('x')\n", {}, ("x.tif cannot be read",)),
        ("    os.symlink('/etc/passwd', '/job/output/x.tif')\n", {}, ("a symbolic link",)),
        ("    print(json.dumps({'status': 'error', 'message': 'dry'}))\n", {}, ("dry",)),
    ],
)
def test_what_goes_wrong_in_a_pod_reaches_its_user(  # noqa: PLR0917 - fixtures
    installation: Installation,
    driver: Driver,
    cluster: ClusterEmulator,
    task: str,
    body: str,
    limits: dict[str, float],
    words: tuple[str, ...],
) -> None:
    bad = upload(installation, "bad", HEAD + body, contract="positional", limits=limits)
    told = outcome(bad, driver, task=task)
    assert [word for word in words if word not in told] == []
    assert cluster.pods == {}
    assert len(cluster.deleted) == 1


def test_what_a_script_prints_is_no_message_to_dagster(
    installation: Installation, driver: Driver, cluster: ClusterEmulator, task: str
) -> None:
    forged = {
        "__dagster_pipes_version": "0.1",
        "method": "report_asset_materialization",
        "params": {"asset_key": "predictions", "metadata": {}, "data_version": "1"},
    }
    code = HEAD + f"    print({json.dumps(json.dumps(forged))}, file=sys.stderr)\n"
    forge = upload(installation, "forge", code, contract="positional")
    with launched(forge, driver.instance, task=task) as result:
        assert result.success
        made = [event.asset_key for event in result.get_asset_materialization_events()]
    assert made == [processor_key(forge.owner, forge.name)]


def test_a_cluster_without_room_and_one_that_evicts(
    installation: Installation,
    driver: Driver,
    cluster: ClusterEmulator,
    task: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fail = upload(installation, "fail", FAIL)
    cluster.evict = "The node was low on resource: ephemeral-storage."
    assert "pod was lost: The node was low on resource" in outcome(fail, driver, task=task)
    cluster.evict = ""
    cluster.hold = True
    monkeypatch.setenv("GEOSTUDIO_PROCESSORS__PODS__START_S", "1")
    assert "did not start within 1 s" in outcome(fail, driver, task=task)
    assert cluster.pods == {}


def test_what_the_cluster_does_not_admit_is_told_in_its_words(
    installation: Installation,
    driver: Driver,
    cluster: ClusterEmulator,
    task: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fail = upload(installation, "fail", FAIL)
    monkeypatch.setenv("GEOSTUDIO_PROCESSORS__PODS__CPU", "much")
    told = outcome(fail, driver, task=task)
    assert "Kubernetes does not run the processor's pod: Pod" in told
    assert cluster.created == []
