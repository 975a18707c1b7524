"""One settings tree, read from ``GEOSTUDIO_*`` environment variables.

Nested values use two underscores: ``GEOSTUDIO_GEOSERVER__URL``. Nothing here touches the
disk or the network; folders are made by whoever writes to them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from geostudio_dagster.errors import InvalidRequest
from geostudio_dagster.gateway_settings import GatewaySettings
from geostudio_dagster.models.tuning import EVERYTHING, Tuning
from geostudio_dagster.stac_settings import StacSource

_PREFIX = "GEOSTUDIO_"
_QUOTED = re.compile('"([a-z_]+)"')


class FetchSettings(BaseModel):
    """Limits of the fetcher of remote scenes."""

    model_config = ConfigDict(frozen=True)

    allowed_hosts: tuple[str, ...] = Field(
        default=(), description="Hosts that may resolve to private or loopback addresses."
    )
    max_bytes: int = Field(default=20 * 1024**3, gt=0, description="Largest remote scene, bytes.")
    timeout_s: float = Field(default=60.0, gt=0, description="Silence after which a read fails.")
    total_timeout_s: float = Field(default=3600.0, gt=0, description="Longest whole download.")
    attempts: int = Field(default=3, ge=1, description="Tries of a transient failure in one run.")


class EndpointsSettings(BaseModel):
    """What the models that other machines run may be given; hosts as in ``fetch``."""

    model_config = ConfigDict(frozen=True)

    tokens: dict[str, SecretStr] = Field(
        default_factory=dict, description="Bearer tokens by host: over https, or to allowed hosts."
    )
    shared_folder: Path | None = Field(
        default=None, description="Folder that pooling servers see under the same path."
    )
    max_response_bytes: int = Field(default=1024**3, gt=0, description="Largest answer, bytes.")


class ShardSettings(BaseModel):
    """How tasks are grouped into runs, and how long work is held and retried."""

    model_config = ConfigDict(frozen=True)

    target_seconds: float = Field(default=60.0, gt=0, description="Predicted work per shard.")
    max_per_request: int = Field(default=500, ge=1, description="Partition keys per request.")
    max_live: int = Field(
        default=200, ge=1, description="Runs of shards that wait in the queue or work at a time."
    )
    assumed_mpx_per_second: float = Field(
        default=1.0, gt=0, description="Prediction speed assumed before there is any history."
    )
    lease_s: float = Field(
        default=30.0, gt=0, description="Silence after which work is free again."
    )
    start_grace_s: float = Field(
        default=60.0, gt=0, description="Silence of a run that was asked for but gave no sign yet."
    )
    max_attempts: int = Field(default=3, ge=1, description="Tries of a retryable task failure.")
    max_crashes: int = Field(
        default=10, ge=1, description="Deaths of the process at one task before it is failed."
    )
    max_runs: int = Field(
        default=30, ge=1, description="Runs of one shard before its request is failed."
    )
    retry_delay_s: float = Field(default=5.0, ge=0, description="First delay; doubles each time.")


class LimitSettings(BaseModel):
    """What one request, and one user, may ask for; None is no limit."""

    model_config = ConfigDict(frozen=True)

    max_urls: int = Field(default=100_000, gt=0, description="Scenes of a request.")
    max_area_km2: float | None = Field(
        default=None, gt=0, description="Area of a request on the ellipsoid, square kilometres."
    )
    max_mpx: float | None = Field(
        default=None, gt=0, description="Size of a request, millions of pixels."
    )
    max_live_per_user: int | None = Field(
        default=None, ge=1, description="Requests of a user that are not over."
    )
    cost_per_hour: float | None = Field(
        default=None, ge=0, description="Price of an hour of prediction, for estimates."
    )
    currency: str = Field(default="USD", max_length=10)


class GeoServerSettings(BaseModel):
    """Where layers are published; absent means the embedded layer server only."""

    model_config = ConfigDict(frozen=True)

    url: str = Field(description="Base URL, such as https://maps.example.org/geoserver.")
    user: str = "admin"
    password: SecretStr = SecretStr("geoserver")
    workspace: str = "geofm"
    timeout_s: float = Field(default=120.0, gt=0, description="Silence after which a call fails.")
    attempts: int = Field(default=4, ge=1, description="Tries of a transient failure in one run.")


class KubernetesSettings(BaseModel):
    """Scheduling of the prediction step's pod."""

    model_config = ConfigDict(frozen=True)

    gpu_count: int = Field(default=1, ge=0)
    gpu_resource: str = "nvidia.com/gpu"
    cpu_request: str = "4"
    memory_limit: str = "16Gi"
    shm_size: str = Field(default="2Gi", description="Size of the memory-backed /dev/shm.")
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[dict[str, Any], ...] = (
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
    )


class ProcessorPodSettings(BaseModel):
    """Pods of users' scripts, for ``execution=k8s``; without a claim they run beside the stage."""

    model_config = ConfigDict(frozen=True)

    data_claim: str | None = Field(
        default=None,
        description="Volume claim of the data folder; a pod sees its script, its input and its "
        "output folder of it, and nothing else.",
    )
    image: str = Field(default="", description="Image with Python, rasterio and what else is told.")
    python: str = "python"
    namespace: str | None = Field(default=None, description="That of the run if left out.")
    cpu: str = "1"
    start_s: int = Field(default=600, gt=0, description="Longest that a pod may wait to start.")
    poll_s: float = Field(default=1.0, gt=0, description="How often a running pod is looked at.")


class ScriptLimits(BaseModel):
    """What one run of a user's script may use; a processor's own wishes only lower these."""

    model_config = ConfigDict(frozen=True)

    cpu_s: float = Field(default=1800.0, gt=0, description="CPU time of all its processes.")
    wall_s: float = Field(default=1800.0, gt=0, description="Longest run.")
    memory_bytes: int = Field(default=4 * 1024**3, ge=64 * 1024**2, description="Of all processes.")
    file_bytes: int = Field(default=4 * 1024**3, gt=0, description="Largest file it may write.")
    output_bytes: int = Field(default=8 * 1024**3, gt=0, description="All that it leaves.")
    output_files: int = Field(default=200, ge=1, description="Files that it may leave.")
    open_files: int = Field(default=256, ge=32, description="Open files per process.")
    processes: int = Field(default=64, ge=8, description="Processes and threads at a time.")
    temporary_bytes: int = Field(default=256 * 1024**2, gt=0, description="Size of its /tmp.")
    log_bytes: int = Field(default=1024**2, ge=4096, description="Kept of what it prints.")

    def lowered(self, wishes: Mapping[str, float]) -> ScriptLimits:
        """These limits where ``wishes`` (by field name) asks for no less.

        Raises:
            InvalidRequest: a wish names no limit, or is not a positive number.
        """
        if unknown := sorted(set(wishes) - set(ScriptLimits.model_fields)):
            known = ", ".join(ScriptLimits.model_fields)
            raise InvalidRequest(f"limits.{unknown[0]}", "there is no such limit", f"use {known}")
        own = self.model_dump()
        try:
            wanted = ScriptLimits(**{**own, **wishes}).model_dump()
            return ScriptLimits(**{name: min(own[name], wanted[name]) for name in own})
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            field = f"limits.{first['loc'][0]}"
            raise InvalidRequest(field, str(first["msg"]), "ask for more") from error


class ProcessorSettings(BaseModel):
    """How users' Python scripts are checked and run."""

    model_config = ConfigDict(frozen=True)

    isolation: Literal["auto", "bubblewrap", "rlimits"] = Field(
        default="auto",
        description="auto is bubblewrap, or refusal where it does not work; rlimits accepts that "
        "a script sees the network and the files of this account.",
    )
    max_script_bytes: int = Field(default=10_000_000, gt=0, description="Largest script.")
    allow_dependencies: bool = Field(
        default=False, description="Whether scripts may declare packages (PEP 723)."
    )
    index_url: str | None = Field(default=None, description="Package index instead of pip's own.")
    wheel_folder: Path | None = Field(
        default=None, description="Take packages from this folder only, without any index."
    )
    parallel: int = Field(default=2, ge=1, description="Tasks of a shard that run side by side.")
    limits: ScriptLimits = ScriptLimits()
    pods: ProcessorPodSettings = ProcessorPodSettings()


class WebhookSettings(BaseModel):
    """How the webhooks of requests are told; hosts are allowed as for scenes."""

    model_config = ConfigDict(frozen=True)

    secret: SecretStr | None = Field(
        default=None,
        description="Signs deliveries (whsec_ and base64); without it, a secret per user.",
    )
    timeout_s: float = Field(default=15.0, gt=0, description="Longest a delivery may take.")
    attempts: int = Field(default=30, ge=1, description="Tries of a delivery, over about a day.")
    retry_delay_s: float = Field(
        default=20.0, ge=0, description="First delay; doubles each time, up to an hour."
    )


class HousekeepingSettings(BaseModel):
    """What is removed when; deleted things go ``gateway.retention_days`` after."""

    model_config = ConfigDict(frozen=True)

    share_days: float = Field(default=7.0, gt=0, description="Days that shared files are kept.")
    run_days: float = Field(
        default=30.0,
        ge=0,
        description="Days that Dagster's runs and partitions of finished requests are kept.",
    )
    program_days: float = Field(
        default=30.0, gt=0, description="Days that a model's program is kept without being used."
    )
    program_bytes: int = Field(
        default=20 * 1024**3, ge=0, description="Bytes that all programs may take."
    )
    scratch_hours: float = Field(
        default=48.0, gt=0, description="Silence after which temporary files are abandoned."
    )
    items: int = Field(default=50, ge=1, description="Things of each kind removed at a time.")


class Settings(BaseSettings):
    """Everything that differs between a laptop and a cluster."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, env_nested_delimiter="__", extra="ignore", frozen=True
    )

    data_folder: Path = Field(default=Path(".geostudio"), description="All state lives below it.")
    database_url: str | None = Field(
        default=None, description="Catalog; default is SQLite in the data folder."
    )
    allowed_roots: tuple[Path, ...] = Field(
        default=(), description="Folders that requests may name local scenes from."
    )
    execution: Literal["local", "k8s"] = "local"
    gateway_url: str = Field(
        default="http://127.0.0.1:8091", description="Where browsers reach maps and layers."
    )
    dagster_url: str | None = Field(
        default=None,
        description="Dagster's webserver, so that a submitted request starts at once.",
    )
    max_task_pixels: int = Field(
        default=8192 * 8192, gt=0, description="Larger scenes are split into several tasks."
    )
    calibrate: bool = Field(
        default=True, description="Measure batch size and threads for each model on each machine."
    )
    onnx_engine: Literal["auto", "onnxruntime", "openvino"] = Field(
        default="auto", description="What runs ONNX models; auto is OpenVINO where it is installed."
    )
    tuning: str = Field(
        default=str(EVERYTHING),
        description="What may be done to torch networks to make them quicker: names of fold, "
        "channels_last and pack with commas between them, or none.",
    )
    precision: Literal["exact", "auto"] = Field(
        default="exact",
        description="Of models that do not say it themselves: exact is float32, auto is bfloat16 "
        "where the machine computes in it.",
    )
    convert: bool = Field(
        default=True,
        description="Keep networks of TerraTorch as programs, which load without TerraTorch.",
    )
    max_request_bytes: int = Field(default=16 * 1024**2, gt=0)
    max_tasks: int = Field(default=100_000, gt=0)
    stac: tuple[StacSource, ...] = Field(
        default=(), description="Data sources that requests for areas are served from."
    )
    fetch: FetchSettings = FetchSettings()
    endpoints: EndpointsSettings = EndpointsSettings()
    shards: ShardSettings = ShardSettings()
    limits: LimitSettings = LimitSettings()
    gateway: GatewaySettings = GatewaySettings()
    kubernetes: KubernetesSettings = KubernetesSettings()
    geoserver: GeoServerSettings | None = None
    webhooks: WebhookSettings = WebhookSettings()
    housekeeping: HousekeepingSettings = HousekeepingSettings()
    processors: ProcessorSettings = ProcessorSettings()

    @field_validator("data_folder")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("tuning")
    @classmethod
    def _known(cls, value: str) -> str:
        return str(Tuning.of(value))

    @cached_property
    def catalog_url(self) -> str:
        """SQLAlchemy URL of the catalog."""
        return self.database_url or f"sqlite:///{self.data_folder / 'catalog.db'}"

    @property
    def storage_root(self) -> Path:
        """Folder of committed artifacts."""
        return self.data_folder / "storage"

    @property
    def model_root(self) -> Path:
        """Folder of registered bundles, one sub-folder per digest."""
        return self.data_folder / "models"

    @property
    def processor_root(self) -> Path:
        """Folder of what users' processors need besides artifacts: their packages."""
        return self.data_folder / "processors"

    @property
    def calibrations(self) -> Path:
        """Folder of measured batch sizes and threads, by model and machine."""
        return self.data_folder / "calibrations"

    @property
    def programs(self) -> Path:
        """Folder of networks that were converted, by model and versions."""
        return self.data_folder / "programs"

    @property
    def audit(self) -> Path:
        """Folder of the files that say who did what over the API."""
        return self.data_folder / "audit"

    @property
    def inbox(self) -> Path:
        """Folder where request files are dropped."""
        return self.data_folder / "inbox"

    @property
    def scene_roots(self) -> tuple[Path, ...]:
        """Resolved folders that a local scene may lie in."""
        own = self.data_folder / "scenes"
        return tuple(root.expanduser().resolve() for root in (own, *self.allowed_roots))


def read_settings() -> Settings:
    """The settings that the environment gives.

    Raises:
        InvalidRequest: naming the variable that is wrong.
    """
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        variable = "__".join(str(part) for part in first["loc"]).upper()
        raise InvalidRequest(
            f"{_PREFIX}{variable}", str(first["msg"]), "correct this environment variable"
        ) from error
    except SettingsError as error:
        # It names the field in its sentence only, which parts of several variables may make.
        field = _QUOTED.search(str(error))
        name = f"{_PREFIX}{field[1].upper()}" if field else "settings"
        found = [key for key in os.environ if key.upper().startswith(name)]
        raise InvalidRequest(
            found[0] if len(found) == 1 else name,
            "is not JSON",
            'write lists and groups as JSON, such as ["/data/scenes"]',
        ) from error
