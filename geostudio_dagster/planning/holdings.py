"""What a data source has of a place in a time: granules by solar day."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import shapely
from shapely.errors import ShapelyError
from shapely.geometry import box

from geostudio_dagster.connectors.stac_api import search
from geostudio_dagster.connectors.stac_items import Granule, granule_of
from geostudio_dagster.planning.area import parts_on_the_globe
from geostudio_dagster.settings import Settings
from geostudio_dagster.stac_settings import AssetBand, StacSource

log = logging.getLogger(__name__)

Period = tuple[dt.date, dt.date]
"""First and last day."""

_DEGREES_AN_HOUR = 15
_DAY = dt.timedelta(days=1)
_FEW_PAGES = 20
_AROUND = dt.timedelta(days=45)  # how far the nearest dates are looked for


@dataclass(frozen=True, slots=True)
class Found:
    """Granules that meet an area, and its solar day of each."""

    granule: Granule
    day: dt.date
    outline: shapely.Geometry  # EPSG:4326, -180 to 180 degrees


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a source.

    Attributes:
        wanted: the bands that are needed, by name. area: polygon, EPSG:4326.
        classes: those of the bands that hold codes.
    """

    source: StacSource
    wanted: Mapping[str, AssetBand]
    area: shapely.Geometry
    classes: frozenset[str] = frozenset()

    @property
    def longitude(self) -> float:
        """Of the area's middle: all of its granules' days are by its solar time."""
        west, _, east, _ = self.area.bounds
        return float(west + east) / 2


def periods_of(dates: Iterable[str]) -> list[Period]:
    """Days and periods as the request has them, in order, those that touch as one."""
    spans = sorted(_period(text) for text in dates)
    merged: list[Period] = []
    for first, last in spans:
        if merged and first <= merged[-1][1] + _DAY:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged


def find(
    question: Question, period: Period, settings: Settings, *, most_pages: int | None = None
) -> list[Found]:
    """The granules that meet an area within a period of solar days, in the order of time.

    Raises:
        TaskError: as for :func:`connectors.stac_api.search`.
    """
    source, days = question.source, period
    span = _in_utc(days, question.longitude)
    pages = {} if most_pages is None else {"most_pages": most_pages}
    found: dict[str, Found] = {}
    unread = 0
    shapely.prepare(question.area)
    for item in search(source.search, question.area.bounds, span, settings, **pages):
        granule = granule_of(item, source.search, question.wanted, question.classes, settings)
        if granule is None:
            unread += 1
            continue
        day = solar_day(granule.moment, question.longitude)
        outline = _outline(granule)
        if days[0] <= day <= days[1] and outline is not None and outline.intersects(question.area):
            found[granule.id] = Found(granule, day, outline)
    if unread:
        log.warning("%d items of %s tell no time or place", unread, source.label)
    return sorted(found.values(), key=lambda one: (one.granule.moment, one.granule.id))


def nearest_days(
    question: Question, periods: Sequence[Period], maxcc: float | None, settings: Settings
) -> list[dt.date]:
    """The last day with data before and the first one after, as far as they are near."""
    first, last = periods[0][0], periods[-1][1]
    days: list[dt.date] = []
    for period, nearest in (
        ((_earlier(first, _AROUND), _earlier(first, _DAY)), max),
        ((_later(last, _DAY), _later(last, _AROUND)), min),
    ):
        here = [
            one.day
            for one in find(question, period, settings, most_pages=_FEW_PAGES)
            if is_clear(one.granule, maxcc) and not one.granule.lacks
        ]
        days += [nearest(here)] if here else []
    return days


def is_clear(granule: Granule, maxcc: float | None) -> bool:
    """Whether a granule is not cloudier than allowed; one that does not tell is."""
    return maxcc is None or granule.cloud is None or granule.cloud <= maxcc


def solar_day(moment: dt.datetime, longitude: float) -> dt.date:
    """The day of a moment (UTC) by the sun at a longitude (degrees)."""
    return (moment + dt.timedelta(hours=longitude / _DEGREES_AN_HOUR)).date()


def widened(period: Period, before: int, after: int) -> Period:
    """A period with days added before and after."""
    return (
        _earlier(period[0], dt.timedelta(days=before)),
        _later(period[1], dt.timedelta(days=after)),
    )


def _period(text: str) -> Period:
    first, _, last = text.partition("_")
    return dt.date.fromisoformat(first), dt.date.fromisoformat(last or first)


def _in_utc(period: Period, longitude: float) -> tuple[dt.datetime, dt.datetime]:
    """The moments at which a period of solar days begins and ends."""
    shift = dt.timedelta(hours=longitude / _DEGREES_AN_HOUR)
    midnight = dt.time(tzinfo=dt.UTC)
    first = dt.datetime.combine(max(period[0], dt.date(1, 1, 2)), midnight)
    last = dt.datetime.combine(min(period[1], dt.date(9999, 12, 29)), midnight)
    return first - shift, last + _DAY - shift


def _earlier(day: dt.date, by: dt.timedelta) -> dt.date:
    return dt.date.fromordinal(max(2, day.toordinal() - by.days))


def _later(day: dt.date, by: dt.timedelta) -> dt.date:
    return dt.date.fromordinal(min(dt.date.max.toordinal() - 2, day.toordinal() + by.days))


def _outline(granule: Granule) -> shapely.Geometry | None:
    """Where a granule lies; of a geometry that is none, nowhere."""
    try:
        parts = list(_valid(parts_on_the_globe((), [granule.geometry])))
    except (ShapelyError, ValueError, TypeError, KeyError, IndexError):
        log.warning("item %s has a geometry that cannot be read", granule.id)
        return None
    return shapely.union_all(parts) if parts else None


def _valid(parts: Iterable[shapely.Geometry]) -> Iterator[shapely.Geometry]:
    frame = box(-180, -90, 180, 90)
    for part in parts:
        yield shapely.make_valid(part) & frame
