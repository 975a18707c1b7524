"""Fields of a request that are kept and given back, but change nothing here; each is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

ALL_CLOUDS = 100  # percent; the default of maxcc

BANDS = (
    "model_input_data_spec: the model's own bands are used; of what is sent, only the place of "
    "a band to mask by counts."
)
SOURCES = (
    "data_connector_config: nothing is fetched by it, for scenes are given by address; only the "
    "band to mask by counts."
)
CLOUDS = "maxcc: scenes that are given by address are worked however cloudy they are."
AREA_BANDS = (
    "model_input_data_spec: the model's own bands are used; of what is sent, connector and "
    "collection count."
)
AREA_SOURCES = (
    "data_connector_config: areas are fetched as this installation describes the source; of what "
    "is sent, connector and collection count, and the band to mask by."
)
VALIDATION = "spatial_domain.skip_validation: everything is checked all the same."
TUNE = "fine_tuning_id: the model that is named is run; the tune is run with the sandbox alone."
LAYERS = "geoserver_layers: layers are told when they are published; what is sent is given back."
OUTPUT = "inference_output: outputs are told by /v2/tasks; what is sent is given back."
STYLES = (
    "geoserver_push: the input and the prediction have the model's own styles, in the workspace "
    "of this installation; display_name and visible_by_default count, and file_suffix for what "
    "processors write."
)


def without_effect(sent: Mapping[str, Any], *, runs_tune: bool, areas: bool = False) -> list[str]:
    """One sentence for each field of a request that changes nothing of the work.

    Args:
        sent: the fields that the client set, as JSON values.
        runs_tune: whether the tune that is named is what runs.
        areas: whether it is for areas, not for scenes that are given by address.
    """
    return [*(_of_areas(sent) if areas else _of_scenes(sent)), *_sentences(sent, runs_tune)]


def _of_areas(sent: Mapping[str, Any]) -> Iterator[str]:
    if sent.get("model_input_data_spec"):
        yield AREA_BANDS
    if sent.get("data_connector_config"):
        yield AREA_SOURCES


def _of_scenes(sent: Mapping[str, Any]) -> Iterator[str]:
    if sent.get("model_input_data_spec"):
        yield BANDS
    if sent.get("data_connector_config"):
        yield SOURCES
    if sent.get("maxcc") not in (None, ALL_CLOUDS):
        yield CLOUDS


def _sentences(sent: Mapping[str, Any], runs_tune: bool) -> Iterator[str]:
    if sent.get("fine_tuning_id") and not runs_tune:
        yield TUNE
    if sent["spatial_domain"].get("skip_validation"):
        yield VALIDATION
    if sent.get("geoserver_layers"):
        yield LAYERS
    if sent.get("inference_output"):
        yield OUTPUT
    if any(not push.get("file_suffix") for push in sent.get("geoserver_push") or ()):
        yield STYLES
