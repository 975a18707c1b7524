"""Requests as GEOStudio's clients write and read them."""

from __future__ import annotations

from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, model_validator

from geostudio_dagster.catalog import RequestStatus, StepStatus
from geostudio_dagster.gateway.times import ApiTime
from geostudio_dagster.planning.request import OutputLayer, ProcessorUse

_MOST_URLS = 100_000
_MOST_AREAS = 10_000
_MOST_ENTRIES = 100
NO_PLACE = "At least one of 'bbox', 'polygons', 'tiles', or 'urls' must be provided."

Degrees = Annotated[float, Field(allow_inf_nan=False)]
Corners = Annotated[list[Degrees], Field(min_length=4, max_length=4)]
Address = Annotated[str, Field(min_length=1, max_length=4096)]
ShortText = Annotated[str, Field(max_length=200)]
LongText = Annotated[str, Field(max_length=4000)]
Document = dict[str, Any]


class SpatialDomainIn(BaseModel):
    """Where: addresses of scenes, or areas in degrees (EPSG:4326)."""

    bbox: list[Corners] | None = Field(
        default=[], max_length=_MOST_AREAS, description="west, south, east, north of each area"
    )
    polygons: list[Document] | None = Field(default=[], max_length=_MOST_AREAS)
    tiles: list[ShortText] | None = Field(default=[], max_length=_MOST_AREAS)
    urls: list[Address | dict[ShortText, Address]] | None = Field(
        default=[], max_length=_MOST_URLS, description="GeoTIFFs, each with all bands."
    )
    skip_validation: bool | None = None

    @model_validator(mode="after")
    def _somewhere(self) -> Self:
        if not (self.bbox or self.polygons or self.tiles or self.urls):
            raise ValueError(NO_PLACE)
        return self


class DataSource(BaseModel):
    """Where pixels of a modality come from."""

    model_config = ConfigDict(extra="allow")

    connector: ShortText | None = None
    collection: ShortText | None = None
    bands: list[Document] | Document | None = None
    scaling_factor: list[Degrees] | None = None


class PostProcessing(BaseModel):
    """What is masked after the prediction."""

    model_config = ConfigDict(extra="allow")

    cloud_masking: bool | str | Document | None = None
    snow_ice_masking: bool | str | Document | None = None
    permanent_water_masking: bool | str | Document | None = None
    ocean_masking: bool | str | Document | None = None


class GeoServerPush(BaseModel):
    """A layer to be published."""

    model_config = ConfigDict(extra="allow")

    workspace: ShortText
    layer_name: ShortText
    display_name: ShortText
    filepath_key: ShortText
    file_suffix: ShortText
    geoserver_style: str | Document


class GenericProcessor(BaseModel):
    """A user's processor, as it is named beside ``generic_processor_id``."""

    name: ShortText
    description: str | None = None
    processor_parameters: Document | None = None
    processor_file_path: str | None = None
    status: str | None = None


class PipelineStep(BaseModel):
    """One step that a task goes through."""

    model_config = ConfigDict(extra="allow")

    process_id: ShortText
    status: ShortText | None = None
    step_number: int | None = Field(default=None, ge=0, le=1000)


class InferenceCreateInput(BaseModel):
    """A request. Fields that are not described here are not kept.

    The model is named by ``model_id``, by ``model_display_name``, or by the ``fine_tuning_id`` of
    a tune.
    """

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    spatial_domain: SpatialDomainIn
    temporal_domain: list[ShortText] | None = Field(default=None, max_length=_MOST_URLS)
    model_input_data_spec: list[Document] | None = Field(default=None, max_length=_MOST_ENTRIES)
    data_connector_config: list[DataSource] | None = Field(default=None, max_length=_MOST_ENTRIES)
    geoserver_push: list[GeoServerPush] | None = Field(default=None, max_length=_MOST_ENTRIES)
    pipeline_steps: list[PipelineStep] | None = Field(default=None, max_length=_MOST_ENTRIES)
    post_processing: PostProcessing | None = None
    fine_tuning_id: str | None = Field(default=None, max_length=100)
    generic_processor: GenericProcessor | None = None
    maxcc: int | None = Field(default=100, ge=0, le=100, description="Cloud cover, percent.")
    model_display_name: ShortText | None = None
    name: ShortText | None = None
    description: LongText | None = None
    location: ShortText | None = None
    geoserver_layers: Document | None = None
    demo: Document | None = None
    model_id: UUID | None = None
    inference_output: Document | None = None
    generic_processor_id: UUID | None = None
    # Ours.
    processors: list[ProcessorUse] | None = Field(default=None, max_length=16)
    output_layers: list[OutputLayer] | None = Field(default=None, max_length=16)
    shard_size: int | None = Field(default=None, ge=1, le=10_000, description="Tasks per run.")
    task_size: int | None = Field(
        default=None, ge=256, le=65_536, description="Side of the squares of large scenes, pixels."
    )
    priority: int = Field(default=0, ge=-100, le=100)
    webhook: str | None = Field(default=None, max_length=2048)


class SpatialDomainOut(BaseModel):
    """Where, as it was asked for."""

    bbox: list[list[float]]
    polygons: list[Document]
    tiles: list[str]
    urls: list[str]


class InferenceGetResponse(BaseModel):
    """A request and how far it is.

    ``tasks_count_*`` count the steps of all tasks, planning among them, as GEOStudio does;
    ``tasks_by_status`` counts the tasks themselves.
    """

    model_config = ConfigDict(protected_namespaces=())

    spatial_domain: SpatialDomainOut
    temporal_domain: list[str]
    fine_tuning_id: str | None
    generic_processor: GenericProcessor | None
    maxcc: int | None
    model_display_name: str | None
    description: str | None
    location: str | None
    geoserver_layers: Document | None
    demo: Document | None
    model_id: str
    inference_output: Document | None
    generic_processor_id: str | None
    id: UUID | str
    active: bool
    created_by: str
    created_at: ApiTime
    updated_at: ApiTime
    status: RequestStatus
    tasks_count_total: int
    tasks_count_success: int
    tasks_count_failed: int
    tasks_count_stopped: int
    tasks_count_waiting: int
    name: str | None
    error: str | None
    priority: int
    finished_at: ApiTime | None
    tasks_total: int
    tasks_by_status: dict[StepStatus, int]
    estimate: Document
    map_url: str
    warnings: list[str] | None = None


class StepOut(BaseModel):
    """One step of a task."""

    status: StepStatus
    process_id: str
    step_number: int
    start_time: ApiTime | None = None
    end_time: ApiTime | None = None
    attempts: int | None = None
    error: str | None = None
    error_code: str | None = None


class TaskOut(BaseModel):
    """One task: a scene, or a part of a large one."""

    inference_id: str
    task_id: str
    inference_folder: str
    status: StepStatus
    pipeline_steps: list[StepOut]
    url: str | None = None
    date: str | None = None
    error: str | None = None


class InferenceTasksListResponse(BaseModel):
    """A request's tasks in the order of the plan, planning itself last."""

    inference_id: str
    status: RequestStatus
    total_records: int
    tasks: list[TaskOut]


class Message(BaseModel):
    """What was done."""

    msg: str


class Retried(Message):
    """What will run again."""

    tasks: int


class Cost(BaseModel):
    """What a prediction would cost."""

    amount: float
    currency: str


class PlanOut(BaseModel):
    """What a request would take.

    Bytes are those of pixels, uncompressed. ``sampled_scenes`` is how many of very many scenes
    were looked at; the figures are then scaled up. Of areas, ``dates`` are the days with data, and
    ``missing`` says what there is none of; both are null for scenes.
    """

    tasks: int
    shards: int
    mpx: float
    patches: int
    input_bytes: int
    output_bytes: int
    estimated_seconds: float
    mpx_per_second: float
    speed_is_measured: bool
    cost: Cost | None
    scenes_without_header: int
    sampled_scenes: int | None
    dates: list[str] | None
    missing: list[str] | None


class LimitOut(BaseModel):
    """One figure of a request beside what is allowed; None is no limit."""

    name: str
    asked: float
    allowed: float | None
    exceeded: bool
    message: str | None


class V2PipelineCreate(BaseModel):
    """What would be written for a request, what it would take, and what speaks against it."""

    model_config = ConfigDict(protected_namespaces=())

    spatial_domain: SpatialDomainOut
    temporal_domain: list[str]
    model_input_data_spec: list[Document] | None
    data_connector_config: list[DataSource] | None
    geoserver_push: list[GeoServerPush] | None
    pipeline_steps: list[Document] | None
    post_processing: PostProcessing | None
    fine_tuning_id: str | None
    generic_processor: GenericProcessor | None
    maxcc: int | None
    model_id: str
    model_internal_name: str
    tune_id: str | None
    request_type: str
    inference_id: UUID
    description: str | None
    location: str | None
    model_access_url: str | None
    user: str
    plan: PlanOut | None
    area_km2: float | None
    limits: list[LimitOut]
    admissible: bool
    problems: list[str]
    warnings: list[str]


class LayerOut(BaseModel):
    """A map layer of a request."""

    name: str
    title: str
    kind: str
    uri: str
    bounds: list[float]
    z_index: int
    sld_body: str
    style: Document
    granules: int
    published_at: ApiTime
    tilejson: str | None
    tiles: list[str]
    features: str | None


class LayersOut(BaseModel):
    """The layers of a request, the lowest first."""

    inference_id: str
    layers: list[LayerOut]


class TaskDetail(TaskOut):
    """A task with what is known of its scene."""

    pixels: int | None
    scene_size: list[int] | None
    window: list[int] | None
    footprint: Document | None


class OutputLink(BaseModel):
    """Where a task's archive is downloaded, without a key and for a time."""

    task_id: str
    output_url: str
    url: str
    expires_at: ApiTime
    size: int | None
    sha256: str | None
