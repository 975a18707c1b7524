"""From a request as GEOStudio's clients write it to the platform's own, which all doors share."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fastapi import HTTPException

from geostudio_dagster.catalog.processor_records import Position
from geostudio_dagster.catalog.states import CONNECTOR, POSTPROCESS, PREDICTION, PROCESSOR, PUSH
from geostudio_dagster.errors import InvalidRequest
from geostudio_dagster.gateway.v2.area_source import source_named, with_masks_of
from geostudio_dagster.gateway.v2.inference_schemas import InferenceCreateInput, PipelineStep
from geostudio_dagster.gateway.v2.masking import masking_of
from geostudio_dagster.gateway.v2.model_choice import Choice
from geostudio_dagster.gateway.v2.pushed_layers import pushed_layers
from geostudio_dagster.gateway.v2.without_effect import ALL_CLOUDS, without_effect
from geostudio_dagster.planning.request import MOST_CLIENT_CHARACTERS, check_dates
from geostudio_dagster.stac_settings import StacSource

# What GEOStudio's models name, and the place of each in a task. Scenes given by address are
# always fetched, and every model is run by the engine.
_PLACES: Mapping[str, int] = {
    "url-connector": 0,
    "sentinelhub-connector": 0,
    "terrakit-data-fetch": 0,
    "terratorch-inference": 1,
    "run-inference": 1,
    "postprocess-generic": 2,
    PROCESSOR: 2,
    "push-to-geoserver": 3,
}
# What GEOStudio unpacks or passes on to its GeoServer.
_NO_SCENES = (".zip", ".gpkg", ".nc", ".shp")
_ALWAYS = (CONNECTOR, PREDICTION, POSTPROCESS, PUSH)
_PERIOD = re.compile(r"^\d{4}-\d{2}-\d{2}_\d{4}-\d{2}-\d{2}$")
PERIOD_WITHOUT_EFFECT = (
    "temporal_domain: a period has no effect on scenes that are given by address; their dates "
    "are read from their names."
)
# Given back as they came.
_KEPT = (
    "model_display_name",
    "fine_tuning_id",
    "generic_processor",
    "generic_processor_id",
    "maxcc",
    "geoserver_layers",
    "demo",
    "inference_output",
    "model_input_data_spec",
    "data_connector_config",
    "geoserver_push",
    "pipeline_steps",
    "post_processing",
)
_PASSED_ON = ("priority", "shard_size", "task_size", "webhook")


def request_document(
    wish: InferenceCreateInput,
    choice: Choice,
    brought: Collection[str] = (),
    sources: Sequence[StacSource] = (),
) -> tuple[dict[str, Any], list[str]]:
    """The request in the platform's words, and sentences on what of the wish has no effect.

    Args:
        wish: as it came. choice: the model that is run. brought: fields of the wish that its tune
            told, not who sent it. sources: those that areas are served from here.

    Raises:
        InvalidRequest: a step, a scene or a mask is of a kind that cannot be worked here.
    """
    sent = wish.model_dump(mode="json", exclude_unset=True)
    dates, warnings = _dates(wish)
    warnings += _check_steps(wish.pipeline_steps or (), has_processor=_has_processor(wish))
    asked = {name: value for name, value in sent.items() if name not in brought}
    areas = not wish.spatial_domain.urls
    warnings += without_effect(asked, runs_tune=choice.runs_tune, areas=areas)
    source = source_named(sent, choice.details) if areas else None
    client = {key: sent[key] for key in _KEPT if sent.get(key) is not None}
    if dates != (wish.temporal_domain or []):
        client["temporal_domain"] = wish.temporal_domain
    if warnings:
        client["warnings"] = warnings
    _check_size(client)
    document = {
        "model": choice.model_id,
        "spatial_domain": {
            "urls": [_scene(number, url) for number, url in enumerate(_list(wish, "urls"))],
            "bbox": _list(wish, "bbox"),
            "polygons": _list(wish, "polygons"),
            "tiles": _list(wish, "tiles"),
        },
        "temporal_domain": dates,
        "name": wish.name or "",
        "description": wish.description or "",
        "location": wish.location or "",
        "processors": _processors(wish),
        "output_layers": _output_layers(wish),
        "source": source,
        "maxcc": wish.maxcc if areas and wish.maxcc != ALL_CLOUDS else None,
        "masking": masking_of(
            with_masks_of(sent, source, sources) if areas else sent, choice.details, brought
        ),
        "client": client,
        **{key: sent[key] for key in _PASSED_ON if sent.get(key) is not None},
    }
    return document, warnings


def _check_size(client: Mapping[str, Any]) -> None:
    sizes = {key: len(json.dumps(value)) for key, value in client.items()}
    if sum(sizes.values()) > MOST_CLIENT_CHARACTERS - 20 * len(_KEPT):
        largest = max(sizes, key=sizes.__getitem__)
        raise InvalidRequest(
            largest,
            f"takes {sizes[largest]} characters of JSON; with the other descriptive fields that "
            f"is more than the {MOST_CLIENT_CHARACTERS} that are kept",
            "shorten it",
        )


def _list(wish: InferenceCreateInput, name: str) -> list[Any]:
    return list(getattr(wish.spatial_domain, name) or [])


def _scene(number: int, given: str | Mapping[str, str]) -> str:
    field = f"spatial_domain.urls.{number}"
    files = [given] if isinstance(given, str) else list(given.values())
    if len(files) != 1:
        raise InvalidRequest(
            field,
            f"names {len(files)} files for one scene ({', '.join(given)}), which cannot be joined "
            "here",
            "put all bands into one GeoTIFF and give its address",
        )
    path = files[0].partition("?")[0].partition("#")[0].lower()
    if path.endswith(_NO_SCENES):
        raise InvalidRequest(
            field,
            f"is a .{path.rpartition('.')[2]} file, and scenes are GeoTIFFs here",
            "give the address of each GeoTIFF itself",
        )
    return files[0]


def _dates(wish: InferenceCreateInput) -> tuple[list[str], list[str]]:
    """The scenes' dates: a period does not tell them, their file names may."""
    given = list(wish.temporal_domain or [])
    if not wish.spatial_domain.urls:
        return given, []
    check_dates(given)
    days = [value for value in given if not _PERIOD.match(value)]
    if len(days) == len(given):
        return given, []
    return days, [PERIOD_WITHOUT_EFFECT]


def _has_processor(wish: InferenceCreateInput) -> bool:
    return wish.generic_processor_id is not None or bool(wish.processors)


def _check_steps(steps: Sequence[PipelineStep], *, has_processor: bool) -> list[str]:
    """Sentences on steps that are left out but done all the same.

    Raises:
        InvalidRequest: a step is unknown, out of order, or has nothing to run.
    """
    before = 0
    for number, step in enumerate(steps):
        field = f"pipeline_steps.{number}.process_id"
        place = _PLACES.get(step.process_id)
        if place is None:
            raise InvalidRequest(
                field, f"there is no step {step.process_id!r}", f"use {', '.join(_PLACES)}"
            )
        if place < before:
            raise InvalidRequest(
                field,
                f"{step.process_id} cannot come after {steps[number - 1].process_id}",
                "give the steps in the order of the work",
            )
        if step.process_id == PROCESSOR and not has_processor:
            raise InvalidRequest(
                field, "names no processor to run", "add generic_processor_id, or remove the step"
            )
        before = place
    given = {_PLACES[step.process_id] for step in steps if step.process_id != PROCESSOR}
    if not steps or given == {0, 1, 2, 3}:
        return []
    left_out = [name for place, name in enumerate(_ALWAYS) if place not in given]
    return [f"pipeline_steps: {', '.join(left_out)} is done all the same."]


def _output_layers(wish: InferenceCreateInput) -> list[dict[str, Any]]:
    given = [layer.model_dump(mode="json") for layer in wish.output_layers or ()]
    if given or not _has_processor(wish):
        return given
    return pushed_layers(wish.geoserver_push or ())


def _processors(wish: InferenceCreateInput) -> list[dict[str, Any]]:
    uses = [use.model_dump(mode="json", exclude_none=True) for use in wish.processors or ()]
    if wish.generic_processor_id is None:
        if wish.generic_processor is not None:
            raise InvalidRequest(
                "generic_processor",
                "describes a processor but does not say which",
                "give its id as generic_processor_id",
            )
        return uses
    named = wish.generic_processor
    use: dict[str, Any] = {"processor": str(wish.generic_processor_id)}
    if named is not None and named.processor_parameters:
        use["parameters"] = named.processor_parameters
    position = _position(wish.pipeline_steps or ())
    if position is not None:
        use["position"] = position.value
    return [use, *uses]


def _position(steps: Sequence[PipelineStep]) -> Position | None:
    """Where the client put the processor; None where it says nothing of it."""
    names = [step.process_id for step in steps]
    if PROCESSOR not in names or POSTPROCESS not in names:
        return None
    before = names.index(PROCESSOR) < names.index(POSTPROCESS)
    return Position.BEFORE_POSTPROCESS if before else Position.AFTER_POSTPROCESS


def refuse_busy(live: int, allowed: int | None) -> None:
    """Refuse one more request to somebody who has as many under way as is allowed.

    Raises:
        HTTPException: 429.
    """
    if allowed is not None and live >= allowed:
        sentence = (
            f"You have {live} requests under way, and {allowed} are allowed; "
            "wait for one to end, or cancel one."
        )
        raise HTTPException(429, [{"msg": sentence}], headers={"Retry-After": "30"})
