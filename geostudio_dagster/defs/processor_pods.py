"""A users' script in a pod of its own, through Dagster's Pipes client for Kubernetes.

The pod has no token, no capability, no writable root and, with deploy/processor-pods.yaml in its
namespace, no network. Of the data folder it sees three paths: the script and the input, read-only,
and the folder that it fills.
"""

# No `from __future__ import annotations`: Dagster reads these signatures as they are.

import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from geostudio_dagster.catalog import ProcessorRecord
from geostudio_dagster.errors import TaskError
from geostudio_dagster.pipeline.scripts import Runner
from geostudio_dagster.processors.contract import command_line, environment
from geostudio_dagster.processors.printed import printed_json
from geostudio_dagster.processors.run import ScriptJob, ScriptResult
from geostudio_dagster.processors.verdict import verdict
from geostudio_dagster.processors.watch import Breach, disk_breach
from geostudio_dagster.settings import KubernetesSettings, ScriptLimits, Settings

if TYPE_CHECKING:
    from geostudio_dagster.defs.processor_pipes import PodEnd

LABELS = {"app.kubernetes.io/component": "users-processor"}
_NOBODY = 65_534
_KILLED = 128 + signal.SIGKILL
_SCRIPT, _INPUT, _OUTPUT, _WORK = "/job/script", "/job/input", "/job/output", "/job/work"


# What the sandbox does outside of pods: limits that Kubernetes has no fields for, none above what
# the node allows, and exactly this environment; Kubernetes' own variables and Pipes' name the
# cluster and the run.
_BEGIN = """
import os, resource, sys
names, cpu, size, files = sys.argv[1:5]
for name, most in ("CPU", cpu), ("FSIZE", size), ("NOFILE", files), ("CORE", 1):
    kind = getattr(resource, f"RLIMIT_{name}")
    hard = resource.getrlimit(kind)[1]
    most = int(most) if hard == resource.RLIM_INFINITY else min(int(most), hard)
    resource.setrlimit(kind, (most, most))
variables = {name: os.environ[name] for name in names.split(",")}
os.execve(sys.executable, [sys.executable, *sys.argv[5:]], variables)
"""
_PYTHON = ("-I", "-B", "-u", "-X", "utf8")


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
        if os.geteuid() == 0:
            output.chmod(0o777)  # for whom the pod runs as
        job.script.chmod(0o444)
        spec = pod_spec(self.settings, job, output, limits, gpu=processor.gpu)
        pods = self.settings.processors.pods
        client = StoppablePipes(
            limits.log_bytes,
            cancelled,
            pods.start_s,
            partial(_passed, output, limits),
            pods.poll_s,
        )
        started = time.monotonic()
        ended = client.run_script(self.context, spec, LABELS, pods.namespace)
        return _result(ended, output, limits, time.monotonic() - started, cpus=pods.cpu)


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
            # The stage's own user, to whom the files then belong; nobody instead of root.
            "run_as_user": os.geteuid() or _NOBODY,
            "run_as_group": os.getegid() or _NOBODY,
            "seccomp_profile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": "script",
                "image": pods.image,
                **_command(job, pods.python, limits),
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


def _passed(output: Path, limits: ScriptLimits, running_s: float) -> Breach | None:
    """The limit that Kubernetes does not hold, and the script has passed."""
    if running_s > limits.wall_s:
        return Breach.of("timeout", limits)
    return disk_breach((output,), limits.output_bytes)


def _command(job: ScriptJob, python: str, limits: ScriptLimits) -> dict[str, Any]:
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
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": str(job.threads),
        "OPENBLAS_NUM_THREADS": str(job.threads),
        "GDAL_NUM_THREADS": str(job.threads),
    }
    bounds = (math.ceil(limits.cpu_s), limits.file_bytes, limits.open_files)
    start = [python, "-I", "-S", "-c", _BEGIN, ",".join(variables), *map(str, bounds)]
    # Kubernetes would expand $(NAME) in both; a parameter is to arrive as it is.
    return {
        "command": [*start, *(word.replace("$", "$$") for word in (*_PYTHON, *words))],
        "env": [
            {"name": name, "value": value.replace("$", "$$")} for name, value in variables.items()
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


def _result(
    end: "PodEnd", output: Path, limits: ScriptLimits, seconds: float, *, cpus: str
) -> ScriptResult:
    """``cpus`` is how many the pod may keep busy, as Kubernetes writes it."""
    from kubernetes.utils import parse_quantity

    printed = printed_json(end.log)
    breach = end.breach or _breach(end, limits, seconds * float(parse_quantity(cpus)))
    reason, message = verdict(end.exit_code, breach, (end.log,), printed, limits)
    return ScriptResult(
        reason=reason,
        message=message,
        exit_code=end.exit_code,
        seconds=seconds,
        cpu_s=0.0,
        peak_memory=0,
        log=end.log,
        printed=printed,
        output=output,
        isolation="pod",
    )


def _breach(end: "PodEnd", limits: ScriptLimits, most_cpu_s: float) -> Breach | None:
    """The limit for which Kubernetes or Linux ended the pod; ``most_cpu_s`` it can have used.

    Linux kills whoever is out of CPU time: SIGXCPU means nothing to the first process of a pod.
    Nothing within the pod can kill that one, and what else may from outside has a reason here.
    """
    if end.reason == "DeadlineExceeded":
        return Breach.of("timeout", limits)
    if end.reason == "OOMKilled":
        return Breach.of("memory", limits)
    if end.exit_code == _KILLED and most_cpu_s >= limits.cpu_s:
        return Breach.of("cpu", limits)
    return None
