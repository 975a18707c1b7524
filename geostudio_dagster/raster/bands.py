"""Which band of a scene is which input of a model."""

from __future__ import annotations

from collections.abc import Sequence

from geostudio_dagster.errors import TaskError
from geostudio_dagster.models.bundle import Band


def choose_bands(wanted: Sequence[Band], names: Sequence[str | None], scene: str) -> list[int]:
    """Positions (0-based) in the scene of the bands that a model wants, in the model's order.

    Names decide where the scene's bands carry the model's names, whatever their case. A scene
    that knows none of them is read by the manifest's indices, or else in order if it has as many
    bands as the model wants. ``names`` has one entry per band; ``scene`` is for the message.

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
    raise TaskError("too_few_bands", _explain(wanted, names, scene, missing if known else []))


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
