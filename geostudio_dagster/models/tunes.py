"""From a tune as GEOStudio leaves it to the manifest of a bundle.

A tune is a TerraTorch configuration, a checkpoint, and what GEOStudio keeps beside them. The
configuration says what the model takes and how it is normalised; the rest says what the bands
of files are called, and how the classes look.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from geostudio_dagster.errors import InvalidRequest
from geostudio_dagster.models.bundle import Band, BundleManifest
from geostudio_dagster.models.tune_config import Modality, TuneConfig, refused
from geostudio_dagster.models.tune_options import SpecBand, SpecModality, Swatch, TuneOptions

CONFIG = "config_deploy.yaml"
CHECKPOINT = "best_state_dict.ckpt"
NODATA = -9999.0  # in files that do not tell theirs, as in all that GEOStudio writes
_MOST_CLASSES = 255
_LEAST_CLASSES = 2
# Okabe and Ito's colours, told apart with any kind of colour vision; then hues around the wheel.
_PALETTE = ("#999999", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
_GOLDEN_ANGLE = 0.618033988749895
_NAMES_OF_RGB = {
    "R": ("red", "b04", "b4"),
    "G": ("green", "b03", "b3"),
    "B": ("blue", "b02", "b2"),
}


@dataclass(frozen=True, slots=True)
class TuneNames:
    """How a tune's bundle is called: ``name`` for machines, the rest for people."""

    name: str
    title: str
    description: str = ""


def manifest_of(config: TuneConfig, options: TuneOptions, names: TuneNames) -> BundleManifest:
    """The manifest of a tune whose files are called :data:`CONFIG` and :data:`CHECKPOINT`.

    Raises:
        InvalidRequest: configuration and options do not fit together, or something is missing.
    """
    document: dict[str, Any] = {
        "name": names.name,
        "title": names.title,
        "description": names.description,
        "runtime": "terratorch",
        "weights": CHECKPOINT,
        "config": CONFIG,
        "task": config.task,
        "bands": _bands(config, options),
        "dates": config.dates,
        "patch": config.patch,
        "nodata": NODATA,
        "precision": config.precision,
    }
    if config.task == "segmentation":
        document["classes"] = _classes(config, options.legend)
    else:
        document["ramp"] = [
            {"value": stop.value, "colour": stop.colour, "label": stop.label}
            for stop in sorted(options.ramp, key=lambda stop: stop.value)
        ]
    try:
        return BundleManifest.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "bundle"
        raise refused(field, str(first["msg"]), "correct the tune") from error


def _bands(config: TuneConfig, options: TuneOptions) -> list[Band]:
    bands: list[Band] = []
    for number, modality in enumerate(config.modalities):
        spec = _spec_of(modality, number, options.inputs)
        found = _bands_of(modality, number, spec)
        if any(band.rgb for band in bands):
            # Two modalities may both have a picture; one is shown.
            found = [band.model_copy(update={"rgb": None}) for band in found]
        bands += found
    return bands


def _spec_of(
    modality: Modality, number: int, inputs: Sequence[SpecModality]
) -> tuple[int, SpecModality] | None:
    """The entry of model_input_data_spec, by its tag or else by its place."""
    for place, spec in enumerate(inputs):
        if modality.name is not None and spec.tag.lower() == modality.name.lower():
            return place, spec
    return (number, inputs[number]) if number < len(inputs) else None


def _bands_of(modality: Modality, number: int, spec: tuple[int, SpecModality] | None) -> list[Band]:
    known = modality.bands or modality.file_bands
    count = len(known) or len(modality.means)
    if not count and spec is not None:
        count = len(spec[1].bands)
    if not count:
        raise InvalidRequest(
            "model_input_data_spec",
            "is missing, and the configuration names no bands either",
            "list the bands that the model takes",
        )
    sources = [_source(modality, place, spec) for place in range(count)]
    rgb = _rgb(modality, sources)
    means = modality.means or (0.0,) * count
    stds = modality.stds or (1.0,) * count
    return [
        Band(
            name=source.name,
            modality=modality.name,
            index=source.index,
            scale=modality.scale,
            integer_scale=source.scale,
            mean=means[place],
            std=stds[place],
            rgb=rgb.get(place),
        )
        for place, source in enumerate(sources)
    ]


def _source(modality: Modality, place: int, found: tuple[int, SpecModality] | None) -> SpecBand:
    """Which band of a file the model takes as its input ``place``."""
    own = modality.bands[place] if place < len(modality.bands) else ""
    index = modality.file_bands.index(own) if own in modality.file_bands else place
    if found is None:
        return SpecBand(own or f"band {index + 1}", index, 1.0, None)
    number, spec = found
    by_index = {band.index: band for band in spec.bands}
    by_name = {_plain(band.name): band for band in spec.bands}
    # A name that both know is surer than a place; configurations often only count.
    source = by_name.get(_plain(own)) or by_index.get(index)
    if source is None:
        raise InvalidRequest(
            f"model_input_data_spec.{number}.bands",
            f"has no band with index {index}, which the model takes"
            + (f" as {own}" if own else f" as its input {place + 1}"),
            "list the bands of a file as the model was trained on them",
        )
    return source


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace(" ", "").replace("-", "")


def _rgb(modality: Modality, sources: Sequence[SpecBand]) -> dict[int, str]:
    """Places of red, green and blue: as told, else as configured, else as bands are called."""
    told = {place: band.rgb for place, band in enumerate(sources) if band.rgb}
    if len(told) == len(set(told.values())) == len(_NAMES_OF_RGB):
        return {place: colour for place, colour in told.items() if colour}
    if modality.rgb and max(modality.rgb) < len(sources) and len(set(modality.rgb)) == len("RGB"):
        return dict(zip(modality.rgb, "RGB", strict=True))
    places = {band.name.lower(): place for place, band in reversed(list(enumerate(sources)))}
    named: dict[int, str] = {}
    for colour, names in _NAMES_OF_RGB.items():
        place = next((places[name] for name in names if name in places), None)
        if place is not None:
            named[place] = colour
    return named if len(named) == len(_NAMES_OF_RGB) else {}


def _classes(config: TuneConfig, legend: Sequence[Swatch]) -> list[Mapping[str, Any]]:
    # Values beyond the model's classes are masks (997 water, 998 snow, 999 cloud) or "ignore".
    known = {
        int(swatch.value): swatch
        for swatch in legend
        if swatch.value.is_integer() and 0 <= swatch.value < _MOST_CLASSES
    }
    count = config.class_count or len(config.class_names) or (max(known) + 1 if known else 0)
    if not count:
        raise InvalidRequest(
            "geoserver_push",
            "names no classes, and the configuration does not count them",
            "give num_classes, or the style segmentation of the prediction's layer",
        )
    if count > _MOST_CLASSES:
        raise refused(
            "model.init_args.model_args.num_classes",
            f"is {count}, more than the {_MOST_CLASSES} that a byte holds",
            "use a model of fewer classes",
        )
    return [_class(value, config, known.get(value)) for value in range(max(count, _LEAST_CLASSES))]


def _class(value: int, config: TuneConfig, swatch: Swatch | None) -> Mapping[str, Any]:
    own = config.class_names[value] if value < len(config.class_names) else ""
    name = (swatch.label if swatch else "") or own[:100] or f"Class {value}"
    return {
        "value": value,
        "name": name,
        "colour": swatch.colour if swatch else _colour(value),
        "opacity": swatch.opacity if swatch else 1.0,
    }


def _colour(value: int) -> str:
    if value < len(_PALETTE):
        return _PALETTE[value]
    parts = colorsys.hsv_to_rgb(value * _GOLDEN_ANGLE % 1.0, 0.65, 0.85)
    return "#" + "".join(f"{round(part * 255):02x}" for part in parts)
