"""What GEOStudio keeps beside a tune: the bands of its input, the styles of its layers.

These come from people's requests, in all the shapes that they are written in: numbers as texts,
bands as a list or as an object, opacities as texts.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from geostudio_dagster.errors import InvalidRequest

_COLOUR = re.compile(r"#(?:[0-9a-fA-F]{3}|[0-9a-fA-F]{6})")
_SHORT = 4  # characters of #abc
_MOST = 512
_LONGEST_NAME = 64
_LONGEST_LABEL = 100
_RGB: dict[str, Literal["R", "G", "B"]] = {"R": "R", "G": "G", "B": "B"}


@dataclass(frozen=True, slots=True)
class SpecBand:
    """One band of a file; ``index`` is its place there, from 0."""

    name: str
    index: int
    scale: float
    rgb: Literal["R", "G", "B"] | None


@dataclass(frozen=True, slots=True)
class SpecModality:
    """The bands of one input; ``tag`` is its modality_tag, or empty."""

    tag: str
    bands: tuple[SpecBand, ...]


@dataclass(frozen=True, slots=True)
class Swatch:
    """One line of a legend."""

    value: float
    label: str
    colour: str
    opacity: float


@dataclass(frozen=True, slots=True)
class TuneOptions:
    """Inputs and styles of a tune; ``legend`` is of its classes, ``ramp`` of its values."""

    inputs: tuple[SpecModality, ...] = ()
    legend: tuple[Swatch, ...] = ()
    ramp: tuple[Swatch, ...] = ()


def read_options(document: Mapping[str, Any]) -> TuneOptions:
    """Read ``model_input_data_spec``, ``geoserver_push`` and ``label_categories``.

    Raises:
        InvalidRequest: naming the field.
    """
    inputs = tuple(
        _modality(entry, f"model_input_data_spec.{number}")
        for number, entry in _entries(document, "model_input_data_spec")
    )
    legend: tuple[Swatch, ...] = ()
    ramp: tuple[Swatch, ...] = ()
    for number, entry in _entries(document, "geoserver_push"):
        style, field = entry.get("geoserver_style"), f"geoserver_push.{number}.geoserver_style"
        if isinstance(style, Mapping):
            legend = legend or _swatches(style, "segmentation", field)
            ramp = ramp or _swatches(style, "regression", field)
    return TuneOptions(inputs, legend or _categories(document), ramp)


def _modality(entry: Mapping[str, Any], field: str) -> SpecModality:
    given, factors = entry.get("bands"), entry.get("scaling_factor")
    if isinstance(given, Mapping):  # {"0": "B02", ...}, as it once was
        given = [{"index": key, "band_name": name} for key, name in given.items()]
    if not isinstance(given, list) or not given:
        raise InvalidRequest(f"{field}.bands", "is not a list of bands", "list at least one")
    if len(given) > _MOST:
        raise InvalidRequest(f"{field}.bands", f"has more than {_MOST} bands", "leave some out")
    bands = []
    for number, band in enumerate(given):
        told = {"band_name": band} if isinstance(band, str) else band
        if not isinstance(told, Mapping):
            raise InvalidRequest(f"{field}.bands.{number}", "is not an object", "name the band")
        factor = told.get("scaling_factor")
        if factor is None and isinstance(factors, list) and number < len(factors):
            factor = factors[number]
        bands.append(_band(told, factor, number, f"{field}.bands.{number}"))
    indices = [band.index for band in bands]
    if len(set(indices)) < len(indices):
        raise InvalidRequest(f"{field}.bands", "has an index twice", "give each band its own")
    tag = entry.get("modality_tag")
    return SpecModality(tag if isinstance(tag, str) else "", tuple(bands))


def _band(told: Mapping[str, Any], factor: object, place: int, field: str) -> SpecBand:
    name = told.get("band_name") or told.get("name")
    if not isinstance(name, str | int) or isinstance(name, bool):
        raise InvalidRequest(f"{field}.band_name", "is missing", "name the band")
    text = str(name).strip()
    if not text or len(text) > _LONGEST_NAME or not text.isprintable():
        raise InvalidRequest(
            f"{field}.band_name", "is no name", f"give 1 to {_LONGEST_NAME} characters"
        )
    index = told.get("index")
    number = place if index is None else number_of(index, f"{field}.index")
    if not number == int(number) or not 0 <= number < _MOST:
        raise InvalidRequest(f"{field}.index", "is not a place in a file", "count from 0")
    scale = 1.0 if factor in (None, "") else number_of(factor, f"{field}.scaling_factor")
    if scale <= 0:
        raise InvalidRequest(f"{field}.scaling_factor", "is not above 0", "use 1 for none")
    rgb = told.get("RGB_band")
    return SpecBand(text, int(number), scale, _RGB.get(rgb) if isinstance(rgb, str) else None)


def _swatches(style: Mapping[str, Any], kind: str, field: str) -> tuple[Swatch, ...]:
    given, field = style.get(kind), f"{field}.{kind}"
    if given is None:
        return ()
    if not isinstance(given, list) or len(given) > _MOST:
        raise InvalidRequest(field, "is not a list of styles", f"give at most {_MOST}")
    swatches = []
    for number, entry in enumerate(given):
        if not isinstance(entry, Mapping):
            raise InvalidRequest(f"{field}.{number}", "is not an object", "give color and quantity")
        value = number_of(entry.get("quantity"), f"{field}.{number}.quantity")
        swatches.append(_swatch(entry, value, "label", f"{field}.{number}"))
    return tuple(swatches)


def _categories(document: Mapping[str, Any]) -> tuple[Swatch, ...]:
    """``label_categories``, as data sets have them."""
    return tuple(
        _swatch(
            entry,
            number_of(entry.get("id"), f"label_categories.{number}.id"),
            "name",
            f"label_categories.{number}",
        )
        for number, entry in _entries(document, "label_categories")
    )


def _swatch(entry: Mapping[str, Any], value: float, label: str, field: str) -> Swatch:
    opacity = entry.get("opacity")
    share = 1.0 if opacity in (None, "") else number_of(opacity, f"{field}.opacity")
    if not 0 <= share <= 1:
        raise InvalidRequest(f"{field}.opacity", "is not between 0 and 1", "correct it")
    text = str(entry.get(label) or "").strip()[:_LONGEST_LABEL]
    return Swatch(value, text, colour_of(entry.get("color"), f"{field}.color"), share)


def colour_of(value: object, field: str) -> str:
    """A colour as ``#rrggbb``, in small letters.

    Raises:
        InvalidRequest: it is none.
    """
    text = value.strip() if isinstance(value, str) else ""
    if not _COLOUR.fullmatch(text):
        raise InvalidRequest(field, f"is not a colour ({shortened(value)})", "write #rrggbb")
    if len(text) == _SHORT:
        text = "#" + "".join(2 * digit for digit in text[1:])
    return text.lower()


def shortened(value: object) -> str:
    """A value as a message shows it."""
    return reprlib.repr(value)[:60]


def number_of(value: object, field: str) -> float:
    """A finite number, which may be written as a text.

    Raises:
        InvalidRequest: it is none.
    """
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise InvalidRequest(field, f"is not a number ({shortened(value)})", "give a finite number")
    return number


def _entries(document: Mapping[str, Any], key: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    value: Sequence[Any] = document.get(key) or ()
    if not isinstance(value, list | tuple) or len(value) > _MOST:
        raise InvalidRequest(key, "is not a list of objects", f"give at most {_MOST}")
    for number, entry in enumerate(value):
        if not isinstance(entry, Mapping):
            raise InvalidRequest(f"{key}.{number}", "is not an object", "give named fields")
        yield number, entry
