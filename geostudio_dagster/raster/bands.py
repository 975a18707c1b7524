"""Which band of a scene is which input of a model."""

from __future__ import annotations

from collections.abc import Sequence

from geostudio_dagster.errors import TaskError
from geostudio_dagster.models.bundle import Band


def choose_bands(
    wanted: Sequence[Band],
    names: Sequence[str | None],
    scene: str,
    masks: Sequence[int] = (),
) -> list[int]:
    """Positions (0-based) in the scene of the bands that a model wants, in the model's order.

    Names decide where the scene's bands carry the model's names, whatever their case. A scene
    that knows none of them is read by the manifest's indices, or else in order if it has as many
    bands as the model wants. ``names`` has one entry per band; ``scene`` is for the message, and so
    are ``masks``: the numbers (from 1) of the file's bands that are none of these.

    Raises:
        TaskError: ``too_few_bands``, there is no such choice.
    """
    places = {
        name.strip().lower(): place for place, name in reversed(list(enumerate(names))) if name
    }
    found = [places.get(band.name.lower()) for band in wanted]
    if all(place is not None for place in found):
        return [place for place in found if place is not None]
    known = any(place is not None for place in found)
    indices = [band.index for band in wanted]
    if not known and all(index is not None and index < len(names) for index in indices):
        return [index for index in indices if index is not None]
    if not known and len(names) == len(wanted):
        return list(range(len(names)))
    missing = [band.name for band, place in zip(wanted, found, strict=True) if place is None]
    text = _explain(wanted, names, scene, missing if known else [])
    raise TaskError("too_few_bands", " ".join([text, *map(_masked, masks)]))


def _explain(
    wanted: Sequence[Band], names: Sequence[str | None], scene: str, missing: Sequence[str]
) -> str:
    has = ", ".join(name or f"unnamed band {number}" for number, name in enumerate(names, start=1))
    needs = ", ".join(band.name for band in wanted)
    lacks = f" It lacks {', '.join(missing)}." if missing else ""
    return (
        f"{scene} has {len(names)} {'band' if len(names) == 1 else 'bands'} ({has}), but the model "
        f"needs {len(wanted)}: {needs}.{lacks} Give a scene with these bands, named like this."
    )


def _masked(band: int) -> str:
    # GDAL marks the fourth of four 8-bit bands like this, unless it is told otherwise.
    return (
        f"Its band {band} is marked as alpha, so it counts as a mask; if it is data, mark it as "
        f"undefined (gdal_edit.py -colorinterp_{band} undefined)."
    )
