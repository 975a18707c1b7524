"""``post_processing``: what of it is done here, from GEOStudio's words to the platform's own.

Clouds, snow and ice are masked by a classification band of the scene. Everything else that would
change the map is refused: a map without it would be another one than was asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, get_args

from geostudio_dagster.connectors.collections import COLLECTIONS
from geostudio_dagster.errors import InvalidRequest
from geostudio_dagster.planning.masks import Encoding, MaskKind

Document = Mapping[str, Any]
_KINDS: Mapping[str, MaskKind] = {"cloud_masking": "cloud", "snow_ice_masking": "snow_ice"}
_WORDS = {"true": True, "false": False, "none": False, "": False}
_REMEDY = "set it to false, or do it with a processor of your own (POST /v2/generic-processor)"
_NOT_HERE = {
    "permanent_water_masking": "needs a map of permanent water, and there is none here",
    "ocean_masking": "needs a map of coasts, and there is none here",
    "mask_from_url": "masks by polygons of another server, which is not done here",
    "regularization": "straightens outlines, which is not done here",
    "regularization_custom": "straightens outlines, which is not done here",
    "download_scripts": "runs scripts of another server, which is not done here",
}


def masking_of(
    sent: Document, model: Document, brought: Collection[str] = ()
) -> dict[str, Any] | None:
    """What is masked and by which band, as the platform's requests have it; None for nothing.

    Args:
        sent: a request as it came. model: what is told beside the model, for what the request
            leaves out. brought: fields of ``sent`` that come from its tune.

    Raises:
        InvalidRequest: something is wished that is not done here, or no band tells it.
    """
    wished, owner = sent.get("post_processing"), "tune"
    if wished is None:
        wished, owner = model.get("postprocessing_options") or {}, "model"
    elif "post_processing" not in brought:
        return _masking(wished, sent, model)
    try:
        return _masking(wished, sent, model)
    except InvalidRequest as error:
        reason = f"{error.field.partition('.')[2]} {error.problem}".strip()
        raise InvalidRequest(
            "post_processing",
            f"is left out, and the {owner}'s own cannot be done: {reason}",
            f"send one, such as {{}} for no masks, or have the {owner} changed",
        ) from error


def check_options(options: Document, field: str) -> None:
    """Refuse options of a model or a tune that no request could be worked with.

    Args:
        field: where they stand, as errors name it.

    Raises:
        InvalidRequest: naming the option.
    """
    _switched_on(options, field)


def _masking(wished: Document, sent: Document, model: Document) -> dict[str, Any] | None:
    on = _switched_on(wished, "post_processing")
    if not on:
        return None
    field = next(iter(on))
    band, encoding = _told_by(field, on, sent, model)
    kinds = [kind for name, kind in _KINDS.items() if name in on]
    index = _index(band, sent, model)
    return {"band": band, "index": index, "encoding": encoding, "kinds": kinds}


def _switched_on(options: Document, place: str) -> Document:
    """Those of the options that are wished, all of which can be done."""
    on = {name: value for name, value in options.items() if _is_on(name, value, place)}
    for name in on:
        if name in _NOT_HERE:
            raise InvalidRequest(f"{place}.{name}", _NOT_HERE[name], _REMEDY)
        if name not in _KINDS:  # and no part of a field's path, for it may be any text
            raise InvalidRequest(place, f"{name[:40]!r} is not known here", _REMEDY)
    return on


def _is_on(name: str, value: object, place: str) -> bool:
    """Whether an option is switched on, in all the ways that clients write it."""
    if not isinstance(value, str):
        return bool(value)
    told = _WORDS.get(value.strip().lower())
    if told is None and (name in _KINDS or name in _NOT_HERE):
        raise InvalidRequest(
            f"{place}.{name}", f"{value[:40]!r} is neither true nor false", "give one"
        )
    return told is not False


def _told_by(field: str, on: Document, sent: Document, model: Document) -> tuple[str, str]:
    """Name and encoding of the band that tells what is masked."""
    for entry in _configurations(field, on, sent, model):
        band, encoding = entry.get("band"), entry.get("encoding")
        if isinstance(band, str) and 0 < len(band) <= 64 and encoding in get_args(Encoding):  # noqa: PLR2004
            return band, str(encoding)
    raise InvalidRequest(
        f"post_processing.{field}",
        "needs a band of the scenes that tells where clouds, snow and ice are, and none is named",
        'name it, as {"band": "SCL", "encoding": "sentinel2_scl"} or {"band": "Fmask", '
        '"encoding": "hls_fmask"}, or set it to false',
    )


def _configurations(
    field: str, on: Document, sent: Document, model: Document
) -> Iterator[Mapping[str, Any]]:
    """Where a band may be named, the nearest to the wish first."""
    for value in on.values():
        if isinstance(value, Mapping):
            yield value
    sources = [*_entries(sent, model, "data_connector_config"), *_known(sent, model)]
    for source in sources:
        for name in (field, *_KINDS):
            if isinstance(source.get(name), Mapping):
                yield source[name]


def _known(sent: Document, model: Document) -> Iterator[Mapping[str, Any]]:
    """Known collections that the bands are said to be of."""
    for spec in _entries(sent, model, "model_input_data_spec"):
        for entry in COLLECTIONS:
            named = (spec.get("connector"), spec.get("collection"))
            if named == (entry["connector"], entry["collection_name"]):
                yield entry


def _index(band: str, sent: Document, model: Document) -> int | None:
    """The band's place in the scene, if the bands tell it; several inputs lie there in a row."""
    before = 0
    for spec in _entries(sent, model, "model_input_data_spec"):
        given = spec.get("bands")
        bands = given if isinstance(given, list) else ()
        for place, entry in enumerate(bands, start=before):
            if isinstance(entry, Mapping) and str(entry.get("band_name")).lower() == band.lower():
                told = str(entry.get("index", place))
                return int(told) if told.isdecimal() and len(told) <= 3 else None  # noqa: PLR2004
        before += len(given) if isinstance(given, list | Mapping) else 0
    return None


def _entries(sent: Document, model: Document, name: str) -> Sequence[Mapping[str, Any]]:
    found = sent.get(name) or model.get(name) or ()
    return [entry for entry in found if isinstance(entry, Mapping)]
