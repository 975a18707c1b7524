"""A users' script in a pod of its own, through Dagster's Pipes client for Kubernetes.

The pod has no token, no capability, no writable root and, with deploy/processor-pods.yaml in its
namespace, no network. Of the data folder it sees three paths: the script and the input, read-only,
and the folder that it fills.
"""

# No `from __future__ import annotations`: Dagster reads these signatures as they are.

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from geostudio_dagster.catalog import ProcessorRecord
from geostudio_dagster.errors import TaskError
from geostudio_dagster.pipeline.scripts import Runner
from geostudio_dagster.processors.contract import command_line, environment
from geostudio_dagster.processors.printed import printed_json
from geostudio_dagster.processors.run import ScriptJob, ScriptResult
from geostudio_dagster.processors.verdict import last_words
from geostudio_dagster.settings import KubernetesSettings, ScriptLimits, Settings

LABELS = {"app.kubernetes.io/component": "users-processor"}
_NOBODY = 65_534
_POLL_S = 1.0
_SCRIPT, _INPUT, _OUTPUT, _WORK = "/job/script", "/job/input", "/job/output", "/job/work"


def pod_runner(context: dg.AssetExecutionContext, settings: Settings) -> Runner | None:
    """What runs scripts in pods; None where they run in a sandbox beside the stage."""
    if settings.execution != "k8s" or settings.processors.pods.data_claim is None:
        return None
    return PodRunner(context, settings)


@dataclass(frozen=True)
class PodRunner:
    """Runs scripts in pods, one for each run."""

    context: dg.AssetExecutionContext
    settings: Settings

    def __call__(
        self,
        job: ScriptJob,
        limits: ScriptLimits,
        processor: ProcessorRecord,
        cancelled: Callable[[], bool],
    ) -> ScriptResult:
        """Run the script to its end in a pod, which is gone afterwards.

        Raises:
            TaskError: the script declares packages, or the data folder is not what pods see.
            Cancelled: ``cancelled`` became true meanwhile.
        """
        from geostudio_dagster.defs.processor_pipes import StoppablePipes

        if job.packages is not None:
            raise TaskError(
                "processor_packages",
                "Packages cannot be brought into pods: use an image with them.",
            )
        output = job.folder / "output"
        output.mkdir(parents=True)
        output.chmod(0o777)
        job.script.chmod(0o444)
        spec = pod_spec(self.settings, job, output, limits, gpu=processor.gpu)
        client = StoppablePipes(limits.log_bytes, cancelled, self.settings.processors.pods.start_s)
        started = time.monotonic()
        ended = client.run_script(
            self.context, spec, LABELS, self.settings.processors.pods.namespace
        )
        return _result(ended.exit_code, ended.log, output, time.monotonic() - started, ended.reason)


def pod_spec(
    settings: Settings, job: ScriptJob, output: Path, limits: ScriptLimits, *, gpu: bool = False
) -> dict[str, Any]:
    """The pod of one run, as restricted as Kubernetes' ``restricted`` standard asks and more."""
    pods = settings.processors.pods
    return {
        "automount_service_account_token": False,
        "enable_service_links": False,
        "restart_policy": "Never",
        "termination_grace_period_seconds": 0,
        "active_deadline_seconds": math.ceil(limits.wall_s) + pods.start_s,
        "dns_policy": "None",
        "dns_config": {"nameservers": ["127.0.0.1"]},
        "security_context": {
            "run_as_non_root": True,
            "run_as_user": _NOBODY,
            "run_as_group": _NOBODY,
            "seccomp_profile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": "script",
                "image": pods.image,
                **_command(job, pods.python),
                "working_dir": _WORK,
                "security_context": {
                    "allow_privilege_escalation": False,
                    "privileged": False,
                    "read_only_root_filesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "resources": _resources(settings.kubernetes, pods.cpu, limits, gpu=gpu),
                "volume_mounts": list(_mounts(settings, job, output)),
            }
        ],
        "volumes": [
            {"name": "data", "persistent_volume_claim": {"claim_name": pods.data_claim}},
            {"name": "work", "empty_dir": {"size_limit": str(limits.temporary_bytes)}},
        ],
        **(_gpu_node(settings.kubernetes) if gpu else {}),
    }


def _command(job: ScriptJob, python: str) -> dict[str, Any]:
    source = f"{_INPUT}/{job.input.name}"
    target = _OUTPUT
    if job.contract == "positional":
        target = f"{_OUTPUT}/{job.input.stem}_processed.tif"
    words = command_line(
        job.contract,
        f"{_SCRIPT}/{job.script.name}",
        source,
        target,
        job.parameters,
        options=job.options,
    )
    variables = {
        **environment(source, target, job.parameters),
        "HOME": _WORK,
        "TMPDIR": _WORK,
        "OMP_NUM_THREADS": str(job.threads),
    }
    # Kubernetes would expand $(NAME) in both; a parameter is to arrive as it is.
    return {
        "command": [python, "-I", "-B", "-u", *(word.replace("$(", "$$(") for word in words)],
        "env": [
            {"name": name, "value": value.replace("$(", "$$(")} for name, value in variables.items()
        ],
    }


def _resources(
    kubernetes: KubernetesSettings, cpu: str, limits: ScriptLimits, *, gpu: bool
) -> dict[str, Any]:
    bounds = {
        "cpu": cpu,
        "memory": str(limits.memory_bytes),
        "ephemeral-storage": str(limits.temporary_bytes + limits.log_bytes),
    }
    gpus = {kubernetes.gpu_resource: "1"} if gpu else {}
    return {"requests": dict(bounds), "limits": {**bounds, **gpus}}


def _gpu_node(kubernetes: KubernetesSettings) -> dict[str, Any]:
    return {
        "node_selector": dict(kubernetes.node_selector),
        "tolerations": [dict(toleration) for toleration in kubernetes.tolerations],
    }


def _mounts(settings: Settings, job: ScriptJob, output: Path) -> Iterator[dict[str, Any]]:
    """Single paths of the data folder's volume, and room for temporary files.

    Raises:
        TaskError: a path lies outside of the data folder, such as a scene in place.
    """
    places = (
        (f"{_SCRIPT}/{job.script.name}", job.script, True),
        (f"{_INPUT}/{job.input.name}", job.input, True),
        (_OUTPUT, output, False),
    )
    for mount_path, path, read_only in places:
        try:
            sub_path = path.resolve().relative_to(settings.data_folder.resolve())
        except ValueError:
            raise TaskError(
                "processor_not_run", f"{path} is outside of the volume that pods see."
            ) from None
        yield {
            "name": "data",
            "mount_path": mount_path,
            "sub_path": str(sub_path),
            "read_only": read_only,
        }
    yield {"name": "work", "mount_path": _WORK}


def _result(exit_code: int, log: str, output: Path, seconds: float, reason: str) -> ScriptResult:
    printed = printed_json(log)
    reported = str(printed.get("status", "")).lower() in {"error", "failed", "failure"}
    verdict = (
        "timeout" if reason == "DeadlineExceeded" else "memory" if reason == "OOMKilled" else ""
    )
    kind: Any = verdict or ("failed" if exit_code else "reported" if reported else "ok")
    why = {
        "timeout": "took longer than it may and was ended",
        "memory": "wanted more memory than it may have",
        "failed": f"ended with exit code {exit_code}",
        "reported": "reported an error",
    }
    last = last_words(str(printed.get("message", "")) if kind == "reported" else log)
    message = "" if kind == "ok" else f"The processor {why[kind]}. It said last: {last}"
    return ScriptResult(
        reason=kind,
        message=message,
        exit_code=exit_code,
        seconds=seconds,
        cpu_s=0.0,
        peak_memory=0,
        log=log,
        printed=printed,
        output=output,
        isolation="pod",
    )
