"""The job that dagster-k8s would create for a prediction, against Kubernetes' own schema."""

from __future__ import annotations

from typing import Any

import dagster as dg
import kubernetes_validate
import pytest
from dagster_k8s.job import (
    DagsterK8sJobConfig,
    construct_dagster_k8s_job,
    get_user_defined_k8s_config,
)
from kubernetes.client import ApiClient

from geostudio_dagster.defs.shard_assets import predictions_asset
from geostudio_dagster.settings import KubernetesSettings, Settings


def job_for(settings: Settings) -> dict[str, Any]:
    tags = predictions_asset(settings).op.tags
    job = construct_dagster_k8s_job(
        job_config=DagsterK8sJobConfig(
            job_image="registry.example.org/geostudio-dagster:1",
            dagster_home="/opt/dagster/home",
            instance_config_map="dagster-instance",
            postgres_password_secret="dagster-postgresql",
        ),
        args=["dagster", "api", "execute_step"],
        job_name="dagster-step-0123456789",
        user_defined_k8s_config=get_user_defined_k8s_config(tags),
        pod_name="dagster-step-0123456789",
        component="step_worker",
    )
    document: dict[str, Any] = ApiClient().sanitize_for_serialization(job)
    return document


def test_the_default_job_is_valid_and_asks_for_one_gpu() -> None:
    document = job_for(Settings())
    kubernetes_validate.validate(document, "1.30", strict=True)
    pod = document["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert pod["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    ]
    assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
    shm = next(volume for volume in pod["volumes"] if volume["name"] == "shm")
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "2Gi"}


def test_settings_decide_resource_node_and_tolerations() -> None:
    chosen = KubernetesSettings(
        gpu_count=2,
        gpu_resource="amd.com/gpu",
        memory_limit="64Gi",
        shm_size="8Gi",
        node_selector={"cloud.google.com/gke-accelerator": "nvidia-l4"},
        tolerations=({"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoExecute"},),
    )
    document = job_for(Settings(kubernetes=chosen))
    kubernetes_validate.validate(document, "1.30", strict=True)
    pod = document["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-l4"}
    assert pod["tolerations"][0]["value"] == "yes"
    assert pod["containers"][0]["resources"]["limits"] == {"memory": "64Gi", "amd.com/gpu": "2"}


def test_no_gpu_means_no_gpu_limit() -> None:
    document = job_for(Settings(kubernetes=KubernetesSettings(gpu_count=0)))
    limits = document["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"memory": "16Gi"}


def test_a_misspelt_section_is_refused_by_dagster() -> None:
    with pytest.raises(dg.DagsterInvalidConfigError):
        get_user_defined_k8s_config({"dagster-k8s/config": '{"container_confg": {}}'})
