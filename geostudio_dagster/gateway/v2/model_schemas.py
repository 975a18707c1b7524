"""Models as GEOStudio's clients write and read them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, HttpUrl

from geostudio_dagster.catalog.card_records import CardRecord
from geostudio_dagster.gateway.times import ApiTime
from geostudio_dagster.models.bundle import BundleManifest

Document = dict[str, Any]
_NAME = re.compile(r"[a-zA-Z0-9_-]+")
_MOST_ENTRIES = 100
Entries = Annotated[list[Document], Field(max_length=_MOST_ENTRIES)]
Link = Annotated[str, Field(min_length=1, max_length=4096)]


def _plain_name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError("model display_name can only contain letters, underscores, and hyphens")
    return value


DisplayName = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_plain_name)]


class ModelOnboardingInputSchema(BaseModel):
    """Where a model's files are: addresses of configuration and checkpoint, or a tune's id."""

    model_config = ConfigDict(protected_namespaces=())

    fine_tuned_model_id: str | None = Field(default=None, max_length=100)
    model_configs_url: Link | None = None
    model_checkpoint_url: Link | None = None


class ModelUpdateInput(BaseModel):
    """What changes; what is left out or null stays."""

    model_config = ConfigDict(protected_namespaces=())

    display_name: DisplayName | None = None
    description: str | None = Field(default=None, max_length=4000)
    model_url: HttpUrl | None = None
    pipeline_steps: Entries | None = None
    geoserver_push: Entries | None = None
    model_input_data_spec: Entries | None = None
    postprocessing_options: Document | None = None
    sharable: bool | None = None
    model_onboarding_config: ModelOnboardingInputSchema | None = None
    latest: bool | None = None


class ModelCreateInput(ModelUpdateInput):
    """A new model, or the next version of one of the caller's."""

    display_name: DisplayName
    version: float | None = Field(default=1.0, ge=1, le=1_000_000, allow_inf_nan=False)


class BundleOut(BaseModel):
    """What is known of a model's registered bundle."""

    model_id: str
    runtime: str
    task: str
    dates: int
    patch: Document
    bands: list[Document]
    classes: list[Document]
    ramp: list[Document]
    unit: str
    output: str
    licence: str

    model_config = ConfigDict(protected_namespaces=())


class ModelGetResponse(BaseModel):
    """A model."""

    model_config = ConfigDict(protected_namespaces=())

    display_name: str
    description: str | None
    model_url: str | None
    pipeline_steps: list[Document] | None
    geoserver_push: list[Document] | None
    model_input_data_spec: list[Document] | None
    postprocessing_options: Document | None
    sharable: bool
    model_onboarding_config: ModelOnboardingInputSchema | None
    latest: bool
    version: float
    internal_name: str
    id: UUID
    active: bool
    created_by: str
    created_at: ApiTime
    updated_at: ApiTime
    status: str
    error: str | None = Field(description="Why it could not be deployed.")
    bundle: BundleOut | None = Field(description="Null until there is one that can be run.")


class Deployed(BaseModel):
    """A model that is being deployed."""

    id: UUID
    internal_name: str
    display_name: str
    status: str


def model_document(card: CardRecord) -> ModelGetResponse:
    """A model, with what its owner did not tell taken from its bundle."""
    bundle = None
    known: Mapping[str, Any] = {}
    if card.model_id is not None and card.manifest is not None:
        bundle, known = _of_bundle(_Bundle(card.model_id, card.manifest))

    def told(field: str) -> Any:
        value = card.details.get(field)
        return known.get(field) if value is None else value

    return ModelGetResponse(
        display_name=card.display_name,
        description=told("description"),
        model_url=told("model_url"),
        pipeline_steps=told("pipeline_steps"),
        geoserver_push=told("geoserver_push"),
        model_input_data_spec=told("model_input_data_spec"),
        postprocessing_options=told("postprocessing_options"),
        sharable=card.sharable,
        model_onboarding_config=told("model_onboarding_config"),
        latest=card.latest,
        version=float(card.version),
        internal_name=card.internal_name,
        id=UUID(card.id),
        active=True,
        created_by=card.owner,
        created_at=card.created_at,
        updated_at=card.updated_at,
        status=card.status,
        error=card.details.get("error"),
        bundle=bundle,
    )


@dataclass(frozen=True)
class _Bundle:
    """A registered bundle, whose manifest never changes: it is told apart by its id alone."""

    model_id: str
    manifest: Document = field(compare=False)


@lru_cache(maxsize=1000)
def _of_bundle(bundle: _Bundle) -> tuple[BundleOut, Mapping[str, Any]]:
    manifest = BundleManifest.model_validate(bundle.manifest)
    return _bundle(bundle.model_id, manifest), told_by(manifest)


def told_by(manifest: BundleManifest) -> Mapping[str, Any]:
    """A bundle's bands, layers and steps, in GEOStudio's words."""
    return {
        "description": manifest.description,
        "pipeline_steps": [
            {"process_id": name, "step_number": place, "status": "WAITING" if place else "READY"}
            for place, name in enumerate(
                (
                    "url-connector",
                    "terratorch-inference",
                    "postprocess-generic",
                    "push-to-geoserver",
                )
            )
        ],
        "geoserver_push": _layers(manifest),
        "model_input_data_spec": _inputs(manifest),
        "postprocessing_options": {},
    }


def _inputs(manifest: BundleManifest) -> list[Document]:
    groups = manifest.modalities or {"": manifest.bands}
    inputs = []
    for tag, bands in groups.items():
        entry: Document = {"connector": "url", "bands": []}
        if tag:
            entry["modality_tag"] = tag
        for place, band in enumerate(bands):
            line: Document = {
                "index": place if band.index is None else band.index,
                "band_name": band.name,
                "scaling_factor": band.integer_scale,
            }
            entry["bands"].append(line | ({"RGB_band": band.rgb} if band.rgb else {}))
        inputs.append(entry)
    return inputs


def _layers(manifest: BundleManifest) -> list[Document]:
    prediction: Document = {
        "z_index": 1,
        "workspace": "geofm",
        "layer_name": "pred",
        "file_suffix": "",
        "display_name": "Model prediction",
        "filepath_key": "model_output_image",
        "visible_by_default": "True",
        "geoserver_style": _style(manifest),
    }
    if manifest.rgb_bands is None:
        return [prediction]
    channels = zip((1, 2, 3), ("RedChannel", "GreenChannel", "BlueChannel"), strict=True)
    picture: Document = {
        "z_index": 0,
        "workspace": "geofm",
        "layer_name": "input_rgb",
        "file_suffix": "",
        "display_name": "Input image (RGB)",
        "filepath_key": "model_input_original_image_rgb",
        "visible_by_default": "True",
        "geoserver_style": {"rgb": [{"label": label, "channel": n} for n, label in channels]},
    }
    return [picture, prediction]


def _style(manifest: BundleManifest) -> Document:
    if manifest.task == "segmentation":
        entries = [
            {
                "color": item.colour,
                "label": item.name,
                "opacity": item.opacity,
                "quantity": str(item.value),
            }
            for item in manifest.classes
        ]
        return {"segmentation": entries}
    stops = [
        {"color": stop.colour, "label": stop.label, "opacity": 1, "quantity": str(stop.value)}
        for stop in manifest.ramp
    ]
    return {"regression": stops}


def _bundle(model_id: str, manifest: BundleManifest) -> BundleOut:
    document = manifest.model_dump(mode="json")
    return BundleOut(model_id=model_id, **{name: document[name] for name in _SHOWN})


_SHOWN = tuple(name for name in BundleOut.model_fields if name != "model_id")
