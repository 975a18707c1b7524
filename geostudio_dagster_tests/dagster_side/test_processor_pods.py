"""The pod of a user's script, against Kubernetes' own schema, and what its end becomes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kubernetes_validate
import pytest
import yaml
from dagster_k8s.pipes import build_pod_body
from kubernetes.client import ApiClient

from geostudio_dagster.defs.processor_pipes import PodEnd, StoppablePipes
from geostudio_dagster.defs.processor_pods import LABELS, _result, pod_runner, pod_spec
from geostudio_dagster.errors import Cancelled, TaskError
from geostudio_dagster.processors.run import ScriptJob
from geostudio_dagster.settings import (
    KubernetesSettings,
    ProcessorPodSettings,
    ProcessorSettings,
    ScriptLimits,
    Settings,
)

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
LIMITS = ScriptLimits(wall_s=90.5, memory_bytes=2 * 1024**3)


def settings_for(folder: Path, **changes: Any) -> Settings:
    pods = ProcessorPodSettings(
        data_claim="geostudio-data", image="registry.example.org/processors:1"
    )
    return Settings(
        data_folder=folder, execution="k8s", processors=ProcessorSettings(pods=pods), **changes
    )


def job_in(folder: Path, **changes: Any) -> ScriptJob:
    for name in ("scratch/t/script/a.py", "storage/r/t/t_pred.tif"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    return ScriptJob(
        script=folder / "scratch/t/script/a.py",
        input=folder / "storage/r/t/t_pred.tif",
        folder=folder / "scratch/t/run",
        **{"contract": "positional", "parameters": {"note": "$(HOME) ö"}, **changes},
    )


def pod_of(folder: Path, *, gpu: bool = False, **changes: Any) -> dict[str, Any]:
    job = job_in(folder, **changes)
    settings = settings_for(folder, kubernetes=KubernetesSettings(node_selector={"gpu": "yes"}))
    spec = pod_spec(settings, job, job.folder / "output", LIMITS, gpu=gpu)
    body = build_pod_body("pod", None, None, {}, {"labels": LABELS}, spec)
    document: dict[str, Any] = ApiClient().sanitize_for_serialization(body)
    document |= {"apiVersion": "v1", "kind": "Pod"}
    kubernetes_validate.validate(document, "1.30", strict=True)
    return document


def test_the_pod_can_do_nothing_but_its_work(tmp_path: Path) -> None:
    pod = pod_of(tmp_path)
    assert pod["metadata"]["labels"]["app.kubernetes.io/component"] == "users-processor"
    spec = pod["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert spec["restartPolicy"] == "Never"
    assert spec["activeDeadlineSeconds"] == 91 + 600
    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65534,
        "runAsGroup": 65534,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    for name in ("hostNetwork", "hostPID", "hostIPC", "nodeSelector", "tolerations"):
        assert name not in spec
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["memory"] == str(2 * 1024**3)
    assert "nvidia.com/gpu" not in container["resources"]["limits"]
    assert "envFrom" not in container


def test_the_pod_sees_three_paths_of_the_data_and_its_parameters(tmp_path: Path) -> None:
    (container,) = pod_of(tmp_path)["spec"]["containers"]
    data = [mount for mount in container["volumeMounts"] if mount["name"] == "data"]
    assert [(m["mountPath"], m["subPath"], m["readOnly"]) for m in data] == [
        ("/job/script/a.py", "scratch/t/script/a.py", True),
        ("/job/input/t_pred.tif", "storage/r/t/t_pred.tif", True),
        ("/job/output", "scratch/t/run/output", False),
    ]
    *start, parameters = container["command"]
    assert start == [
        *("python", "-I", "-B", "-u"),
        *("/job/script/a.py", "/job/input/t_pred.tif", "/job/output/t_pred_processed.tif"),
    ]
    assert json.loads(parameters.replace("$$(", "$(")) == {"note": "$(HOME) ö"}
    assert "$$(HOME)" in parameters, "Kubernetes would put a variable's value there"
    assert {entry["name"] for entry in container["env"]} == {
        "GEOSTUDIO_INPUT",
        "GEOSTUDIO_OUTPUT",
        "GEOSTUDIO_PARAMETERS",
        "HOME",
        "TMPDIR",
        "OMP_NUM_THREADS",
    }
    flags = pod_of(tmp_path, contract="flags", parameters={"threshold": 80})
    command = flags["spec"]["containers"][0]["command"]
    assert command[-6:] == [
        *("--threshold", "80"),
        *("--input", "/job/input/t_pred.tif", "--output", "/job/output"),
    ]


def test_a_gpu_only_for_who_asks(tmp_path: Path) -> None:
    spec = pod_of(tmp_path, gpu=True)["spec"]
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert spec["nodeSelector"] == {"gpu": "yes"}
    assert spec["tolerations"][0]["key"] == "nvidia.com/gpu"


def test_what_lies_outside_of_the_volume_is_not_mounted(tmp_path: Path) -> None:
    job = job_in(tmp_path / "elsewhere")
    with pytest.raises(TaskError, match="outside of the volume that pods see"):
        pod_spec(settings_for(tmp_path / "data"), job, job.folder / "output", LIMITS)


def test_pods_are_for_clusters_with_a_shared_volume(tmp_path: Path) -> None:
    context: Any = None
    assert pod_runner(context, Settings(data_folder=tmp_path)) is None
    assert pod_runner(context, Settings(data_folder=tmp_path, execution="k8s")) is None
    assert pod_runner(context, settings_for(tmp_path)) is not None


@pytest.mark.parametrize(
    ("end", "reason", "words"),
    [
        (PodEnd(0, "Completed", 'x\n{"status": "success", "n": 1}\n'), "ok", ""),
        (PodEnd(1, "Error", "looking\nno cloud band\n"), "failed", "no cloud band"),
        (PodEnd(137, "OOMKilled", ""), "memory", "wanted more memory"),
        (PodEnd(1, "DeadlineExceeded", "at tile 7"), "timeout", "at tile 7"),
        (PodEnd(0, "Completed", '{"status": "error", "message": "bad"}'), "reported", "bad"),
    ],
)
def test_a_pods_end_is_told_as_any_other_run(
    tmp_path: Path, end: PodEnd, reason: str, words: str
) -> None:
    result = _result(end.exit_code, end.log, tmp_path, 1.0, end.reason)
    assert (result.reason, result.isolation) == (reason, "pod")
    assert words in result.message


class Cluster:
    """The part of Kubernetes' API that is asked while a pod runs."""

    def __init__(self, *phases: str, exit_code: int = 0, log: bytes = b"") -> None:
        self.phases, self.exit_code, self.log = list(phases), exit_code, log
        self.core_api = self

    def read_namespaced_pod_status(self, _name: str, _namespace: str) -> Any:
        phase = self.phases.pop(0) if len(self.phases) > 1 else self.phases[0]
        over = SimpleNamespace(exit_code=self.exit_code, reason="Error" if self.exit_code else "")
        state = SimpleNamespace(terminated=over)
        statuses = [SimpleNamespace(state=state)]
        return SimpleNamespace(
            status=SimpleNamespace(phase=phase, reason=None, container_statuses=statuses)
        )

    def read_namespaced_pod_log(self, *_: object, **options: Any) -> Any:
        return SimpleNamespace(data=self.log[-options["limit_bytes"] :])


def waiting(cluster: Cluster, cancelled: Callable[[], bool] = bool, start_s: float = 60) -> PodEnd:
    client = StoppablePipes(1000, cancelled, start_s)
    with client.consume_pod_logs(None, cluster, "space", "pod"):
        return client._end


def test_the_client_takes_the_end_and_stops_when_asked() -> None:
    failed = waiting(Cluster("Pending", "Failed", exit_code=3, log=b"\x1b[2Jbad \xff"))
    assert (failed.exit_code, failed.reason) == (3, "Error")
    assert failed.log.isprintable()
    with pytest.raises(Cancelled):
        waiting(Cluster("Running"), cancelled=lambda: True)
    with pytest.raises(TaskError, match="did not start within 0 s"):
        waiting(Cluster("Pending"), start_s=0)


def test_the_network_policy_denies_everything_to_these_pods() -> None:
    documents = list(yaml.safe_load_all((DEPLOY / "processor-pods.yaml").read_text()))
    for document in documents:
        kubernetes_validate.validate(document, "1.30", strict=True)
    policy = documents[0]["spec"]
    assert policy["podSelector"]["matchLabels"] == LABELS
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert (policy["ingress"], policy["egress"]) == ([], [])
