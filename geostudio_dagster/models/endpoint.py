"""What a bundle says of a model that another machine runs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from geostudio_dagster.connectors.addresses import UnacceptableAddressError, http_url

Payload = Literal["tensor", "pooling"]
Plugin = Literal["terratorch_segmentation", "terratorch_tm_segmentation"]


class EndpointSettings(BaseModel):
    """Where the model answers and how it is asked; :mod:`models.remote` says what is sent.

    A URL alone, without the other keys, means a tensor endpoint with the defaults.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(max_length=2000)
    payload: Payload = "tensor"
    model: str = Field(
        default="",
        max_length=200,
        pattern=r"^[^\x00]*$",  # PostgreSQL's JSON cannot hold that character
        description="Name that vLLM serves it under.",
    )
    plugin: Plugin = Field(
        default="terratorch_segmentation", description="The server's plugin, for pooling."
    )
    data_format: Literal["b64_json", "path"] = Field(
        default="b64_json", description="How a pooling server gets a patch."
    )
    batch_size: int = Field(default=8, ge=1, le=1024, description="Patches per request.")
    concurrency: int = Field(default=4, ge=1, le=64, description="Requests at the same time.")
    timeout_s: float = Field(default=60.0, gt=0, description="Silence after which a try fails.")
    deadline_s: float = Field(default=600.0, gt=0, description="Time of a batch, all tries.")
    attempts: int = Field(default=5, ge=1, le=50, description="Tries of a transient failure.")

    @field_validator("url")
    @classmethod
    def _plain(cls, value: str) -> str:
        try:
            return str(http_url(value))
        except UnacceptableAddressError as error:
            raise ValueError(f"{error.problem}; {error.remedy}") from error


def _as_mapping(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


Endpoint = Annotated[EndpointSettings, BeforeValidator(_as_mapping)]
