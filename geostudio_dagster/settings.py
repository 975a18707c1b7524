"""One settings tree, read from ``GEOSTUDIO_*`` environment variables.

Nested values use two underscores: ``GEOSTUDIO_GEOSERVER__URL``. Nothing here touches the
disk or the network; folders are made by whoever writes to them.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from geostudio_dagster.errors import InvalidRequest
from geostudio_dagster.gateway_settings import GatewaySettings

_PREFIX = "GEOSTUDIO_"


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
        default_factory=dict, description="Bearer tokens by host name, sent to that host alone."
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
    max_task_pixels: int = Field(
        default=8192 * 8192, gt=0, description="Larger scenes are split into several tasks."
    )
    max_request_bytes: int = Field(default=16 * 1024**2, gt=0)
    max_tasks: int = Field(default=100_000, gt=0)
    fetch: FetchSettings = FetchSettings()
    endpoints: EndpointsSettings = EndpointsSettings()
    shards: ShardSettings = ShardSettings()
    gateway: GatewaySettings = GatewaySettings()
    kubernetes: KubernetesSettings = KubernetesSettings()
    geoserver: GeoServerSettings | None = None

    @field_validator("data_folder")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

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
        raise InvalidRequest(
            "settings", str(error), 'write lists and groups as JSON, such as ["/data/scenes"]'
        ) from error
