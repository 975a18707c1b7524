"""Tunes as GEOStudio's clients write and read them."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from geostudio_dagster.catalog.card_records import TuneRecord
from geostudio_dagster.errors import InvalidRequest
from geostudio_dagster.gateway.times import ApiTime
from geostudio_dagster.gateway.v2.inference_schemas import (
    DataSource,
    InferenceCreateInput,
    PostProcessing,
    ShortText,
)
from geostudio_dagster.models.bundle import BundleManifest

Document = dict[str, Any]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Description = Annotated[str, Field(max_length=4000)]
Link = Annotated[str, Field(min_length=1, max_length=4096)]
Entries = Annotated[list[Document], Field(max_length=100)]
OPTIONS = ("model_input_data_spec", "data_connector_config", "geoserver_push", "post_processing")
_MOST_CHARACTERS = 256 * 1024


class PushedLayer(BaseModel):
    """A layer to be published; what is left out is as for a prediction."""

    model_config = ConfigDict(extra="allow")

    workspace: ShortText = "geofm"
    layer_name: ShortText = "pred"
    display_name: ShortText = "Model prediction"
    filepath_key: ShortText = "model_output_image"
    file_suffix: ShortText = ""
    geoserver_style: str | Document = ""


class TuneOptions(BaseModel):
    """What belongs to a tune beside its files."""

    model_config = ConfigDict(protected_namespaces=())

    model_input_data_spec: Entries | None = None
    data_connector_config: Annotated[list[DataSource], Field(max_length=100)] | None = None
    geoserver_push: Annotated[list[PushedLayer], Field(max_length=100)] | None = None
    post_processing: PostProcessing | None = None


class UploadTuneInput(TuneOptions):
    """A tune that was made elsewhere: addresses of its files, and what belongs to it."""

    name: Name
    description: Description
    tune_config_url: Link
    tune_checkpoint_url: Link


class TrainOptions(TuneOptions):
    """The same, and whatever else clients keep there."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


class UploadStarted(BaseModel):
    """The tune is being fetched; its status tells how far."""

    message: str = "Upload started"
    tune_id: str


class TuneUpdateIn(BaseModel):
    """What changes; what is left out or null stays. Of train_options, the keys that are given."""

    name: Name | None = None
    description: Description | None = None
    train_options: TrainOptions | None = None


class TryOutTuneInput(InferenceCreateInput):
    """A request with this tune; what is left out is what the tune came with."""

    model_config = ConfigDict(protected_namespaces=())

    location: ShortText
    temporal_domain: Annotated[list[ShortText], Field(max_length=100_000)]


class Named(BaseModel):
    """An id and what it is called."""

    id: str
    name: str


class TuneOut(BaseModel):
    """A tune, as it is listed."""

    id: str
    active: bool
    created_by: str
    created_at: ApiTime
    updated_at: ApiTime
    name: str
    description: str
    task: Named | None
    dataset_id: str
    base_model: Named | None
    mcad_id: str
    status: str
    latest_chkpt: str
    logs: str | None
    metrics: list[Document]
    shared: bool
    error: str | None


class TuneStatusOut(TuneOut):
    """A tune with all that is known of it."""

    model_config = ConfigDict(protected_namespaces=())

    config_json: Document
    progress: Document | None
    logs_presigned_url: str | None
    tuning_config: str | None
    tuning_config_presigned_url: str | None
    train_options: Document
    tune_template_id: str | None
    model_parameters: Document
    model_id: str | None = Field(description="The registered bundle; null until there is one.")
    bundle: Document | None = Field(description="Its manifest.")


class TuneDownloadOut(BaseModel):
    """Links to a tune's files, which work without a key and for a time."""

    id: str
    name: str
    description: str
    config_url: str
    checkpoint_url: str
    expires_at: ApiTime


class MlflowRun(BaseModel):
    """What was measured in one training."""

    name: str
    status: str
    epochs: str
    metrics: list[Document]


class TunedModelMlflowMetrics(BaseModel):
    """What was measured in training; nothing, for tunes are not trained here."""

    id: str
    status: str
    runs: list[MlflowRun] = []
    details: str = "This tune was trained elsewhere; its metrics are not known here."
    metrics: list[Document] = []
    epochs: int | None = None


def tune_document(tune: TuneRecord, caller: str, manifest: BundleManifest | None) -> Document:
    """The fields of :class:`TuneOut`."""
    task = manifest.task if manifest is not None else None
    return {
        "id": tune.id,
        "active": True,
        "created_by": tune.owner,
        "created_at": tune.created_at,
        "updated_at": tune.updated_at,
        "name": tune.name,
        "description": tune.description,
        "task": None if task is None else {"id": task, "name": task.capitalize()},
        "dataset_id": "",
        "base_model": None,
        "mcad_id": "",
        "status": tune.status,
        "latest_chkpt": manifest.weights if manifest is not None else "",
        "logs": None,
        "metrics": [],
        "shared": tune.owner != caller,
        "error": tune.error,
    }


def status_document(
    tune: TuneRecord,
    caller: str,
    manifest: BundleManifest | None,
    config_url: str | None,
) -> TuneStatusOut:
    """All that is known of a tune. ``config_url`` is a link to its configuration."""
    return TuneStatusOut.model_validate(
        {
            **tune_document(tune, caller, manifest),
            "config_json": {},
            "progress": None,
            "logs_presigned_url": None,
            "tuning_config": manifest.config if manifest is not None else None,
            "tuning_config_presigned_url": config_url,
            "train_options": tune.details.get("train_options") or {},
            "tune_template_id": None,
            "model_parameters": {},
            "model_id": tune.model_id,
            "bundle": None if manifest is None else manifest.model_dump(mode="json"),
        }
    )


def checked_options(options: Document) -> Document:
    """What belongs to a tune, if it is not too long to be kept.

    Raises:
        InvalidRequest: it is.
    """
    sizes = {key: len(json.dumps(value)) for key, value in options.items()}
    if sum(sizes.values()) > _MOST_CHARACTERS:
        largest = max(sizes, key=sizes.__getitem__)
        raise InvalidRequest(
            largest,
            f"takes {sizes[largest]} characters of JSON; {_MOST_CHARACTERS} are kept in all",
            "shorten it",
        )
    return options


TuneFile = Literal["config", "checkpoint"]
