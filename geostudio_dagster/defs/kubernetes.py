"""Scheduling tags of the prediction step: a GPU, its node, its tolerations, shared memory."""

from __future__ import annotations

from typing import Any

from geostudio_dagster.settings import KubernetesSettings


def prediction_pod_config(settings: KubernetesSettings) -> dict[str, Any]:
    """The ``dagster-k8s/config`` of the pod that predicts.

    PyTorch's data loaders and CUDA's IPC use ``/dev/shm``, which Kubernetes limits to 64 MiB
    unless a memory-backed volume is mounted there; it counts towards the memory limit.
    """
    limits: dict[str, str] = {"memory": settings.memory_limit}
    if settings.gpu_count:
        limits[settings.gpu_resource] = str(settings.gpu_count)
    return {
        "container_config": {
            "resources": {
                "requests": {"cpu": settings.cpu_request, "memory": settings.memory_limit},
                "limits": limits,
            },
            "volume_mounts": [{"name": "shm", "mount_path": "/dev/shm"}],  # noqa: S108
        },
        "pod_spec_config": {
            "node_selector": dict(settings.node_selector),
            "tolerations": [dict(toleration) for toleration in settings.tolerations],
            "volumes": [
                {
                    "name": "shm",
                    "empty_dir": {"medium": "Memory", "size_limit": settings.shm_size},
                }
            ],
        },
    }
