"""The pod of a user's script, against Kubernetes' own schema, and what its end becomes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from dagster_k8s.pipes import build_pod_body
from kubernetes.client import ApiClient

from geostudio_dagster.defs.processor_pipes import PodEnd
from geostudio_dagster.defs.processor_pods import LABELS, _result, pod_runner, pod_spec
from geostudio_dagster.errors import TaskError
from geostudio_dagster.processors.run import ScriptJob
from geostudio_dagster.settings import (
    KubernetesSettings,
    ProcessorPodSettings,
    ProcessorSettings,
    ScriptLimits,
    Settings,
)
from geostudio_dagster_tests.emulators.pod_security import violations
from geostudio_dagster_tests.processors.limiting import bounded

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
    assert violations(pod) == [], "of the Pod Security Standard restricted"
    spec = pod["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert spec["restartPolicy"] == "Never"
    assert spec["activeDeadlineSeconds"] == 91 + 600
    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": os.geteuid() or 65534,
        "runAsGroup": os.getegid() or 65534,
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
    assert start[:4] == ["python", "-I", "-S", "-c"]
    assert start[-12:] == [
        *(",".join(entry["name"] for entry in container["env"]), "1800", str(4 * 1024**3), "256"),
        *("-I", "-B", "-u", "-X", "utf8"),
        *("/job/script/a.py", "/job/input/t_pred.tif", "/job/output/t_pred_processed.tif"),
    ]
    assert json.loads(parameters.replace("$$", "$")) == {"note": "$(HOME) ö"}
    assert "$$(HOME)" in parameters, "Kubernetes would put a variable's value there"
    assert {entry["name"] for entry in container["env"]} == {
        "GEOSTUDIO_INPUT",
        "GEOSTUDIO_OUTPUT",
        "GEOSTUDIO_PARAMETERS",
        "HOME",
        "TMPDIR",
        "LANG",
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "GDAL_NUM_THREADS",
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
        (PodEnd(137, "OOMKilled", ""), "memory", "used more than 2,048 MiB of memory"),
        (PodEnd(1, "Error", "at tile 7\nMemoryError\n"), "memory", "more than 2,048 MiB of memory"),
        (PodEnd(1, "DeadlineExceeded", "at tile 7"), "timeout", "at tile 7"),
        (PodEnd(1, "DeadlineExceeded", ""), "timeout", "took longer than 90.5 s and was ended."),
        (PodEnd(0, "Completed", '{"status": "error", "message": "bad"}'), "reported", "bad"),
        (PodEnd(1, "Error", '{"status": "error", "message": "bad"}'), "reported", "bad"),
        (PodEnd(152, "Error", ""), "cpu", "used more than 1800 s of processor time and was ended."),
        (PodEnd(137, "Error", "at tile 7"), "cpu", "1800 s of processor time and was ended. It"),
        (PodEnd(139, "Error", ""), "signal", "was ended by SIGSEGV."),
    ],
)
def test_a_pods_end_is_told_as_any_other_run(
    tmp_path: Path, end: PodEnd, reason: str, words: str
) -> None:
    result = _result(end, tmp_path, LIMITS, 3600.0, cpus="500m")
    assert (result.reason, result.isolation) == (reason, "pod")
    assert words in result.message


def test_who_cannot_have_used_its_processor_time_was_killed_for_something_else(
    tmp_path: Path,
) -> None:
    end = PodEnd(137, "Error", "")
    result = _result(end, tmp_path, LIMITS, 3599.0, cpus="500m")
    assert (result.reason, result.message) == ("signal", "The processor was ended by SIGKILL.")


def test_a_pod_starts_where_the_node_allows_less(tmp_path: Path) -> None:
    """Only few may raise a hard limit, and a pod may not."""
    script = tmp_path / "a.py"
    script.write_text(
        "import json, resource\n"
        "print(json.dumps([resource.getrlimit(getattr(resource, f'RLIMIT_{name}'))\n"
        "                  for name in ('CPU', 'FSIZE', 'NOFILE', 'CORE')]))\n"
    )
    (container,) = pod_of(tmp_path / "data")["spec"]["containers"]
    _, *options = container["command"][: container["command"].index("/job/script/a.py")]
    done = subprocess.run(
        [*bounded("--core=0", "--fsize=1000"), sys.executable, *options, str(script)],
        env={entry["name"]: entry["value"] for entry in container["env"]},
        capture_output=True,
        check=False,
    )
    assert done.stderr == b""
    assert json.loads(done.stdout) == [[1800, 1800], [1000, 1000], [256, 256], [0, 0]]


def test_the_network_policy_denies_everything_to_these_pods() -> None:
    documents = list(yaml.safe_load_all((DEPLOY / "processor-pods.yaml").read_text()))
    for document in documents:
        kubernetes_validate.validate(document, "1.30", strict=True)
    policy = documents[0]["spec"]
    assert policy["podSelector"]["matchLabels"] == LABELS
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert (policy["ingress"], policy["egress"]) == ([], [])


def test_the_network_policy_selects_the_pods_that_are_made(tmp_path: Path) -> None:
    (policy, _) = yaml.safe_load_all((DEPLOY / "processor-pods.yaml").read_text())
    wanted = policy["spec"]["podSelector"]["matchLabels"].items()
    assert wanted <= pod_of(tmp_path)["metadata"]["labels"].items()


BREAKS: dict[str, Callable[[dict[str, Any]], object]] = {
    "Host Namespaces": lambda spec: spec.update(hostPID=True),
    "HostPath Volumes": lambda spec: spec["volumes"].append(
        {"hostPath": {"path": "/"}, "emptyDir": {}}
    ),
    "Volume Types": lambda spec: spec["volumes"].append({"nfs": {"server": "x", "path": "/"}}),
    "Host Ports": lambda spec: spec["containers"][0].update(ports=[{"hostPort": 80}]),
    "Privilege Escalation": lambda spec: spec["containers"][0]["securityContext"].pop(
        "allowPrivilegeEscalation"
    ),
    "Privileged Containers": lambda spec: spec["containers"][0]["securityContext"].update(
        privileged=True
    ),
    "Capabilities": lambda spec: spec["containers"][0]["securityContext"].update(
        capabilities={"drop": ["ALL"], "add": ["NET_ADMIN"]}
    ),
    "Running as Non-root": lambda spec: spec["securityContext"].pop("runAsNonRoot"),
    "Running as Non-root user": lambda spec: spec["securityContext"].update(runAsUser=0),
    "Seccomp": lambda spec: spec["securityContext"].pop("seccompProfile"),
    "Sysctls": lambda spec: spec["securityContext"].update(sysctls=[{"name": "kernel.msgmax"}]),
    "/proc Mount Type": lambda spec: spec["containers"][0]["securityContext"].update(
        procMount="Unmasked"
    ),
    "AppArmor": lambda spec: spec["securityContext"].update(appArmorProfile={"type": "Unconfined"}),
    "SELinux": lambda spec: spec["securityContext"].update(seLinuxOptions={"user": "root"}),
}


@pytest.mark.parametrize("control", BREAKS)
def test_the_standards_rules_find_what_they_are_for(tmp_path: Path, control: str) -> None:
    pod = pod_of(tmp_path)
    BREAKS[control](pod["spec"])
    assert violations(pod) == [control]
