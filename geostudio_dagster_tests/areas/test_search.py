"""The search itself: pages, pauses, refusals, and where it may not go."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from shapely.geometry import box

from geostudio_dagster.connectors.stac_api import search
from geostudio_dagster.errors import TaskError
from geostudio_dagster.planning.holdings import Question, find, periods_of, solar_day
from geostudio_dagster.settings import Settings
from geostudio_dagster.stac_settings import StacSearch
from geostudio_dagster_tests.areas.conftest import AREA, described, pixels
from geostudio_dagster_tests.emulators.stac_api import COLLECTION, StacApi

JUNE = (dt.datetime(2024, 6, 1, tzinfo=dt.UTC), dt.datetime(2024, 6, 30, tzinfo=dt.UTC))


def ids(api: StacApi, settings: Settings, **more: Any) -> list[str]:
    """Ids of what a search of June gives."""
    source = StacSearch(type="stac", url=api.url, collection=COLLECTION)
    return [item["id"] for item in search(source, AREA, JUNE, settings, **more)]


@pytest.fixture
def days(stac: StacApi) -> list[str]:
    """Names of granules of seven days, which are there."""
    names = [f"2024-06-0{number}" for number in range(1, 8)]
    for name in names:
        stac.granule(name, f"{name}T10:00:00Z", {"red": pixels(600)})
    return names


@pytest.mark.parametrize("by_get", [False, True])
def test_all_pages_are_followed(
    stac: StacApi, settings: Settings, days: list[str], by_get: bool
) -> None:
    stac.page, stac.by_get = 3, by_get
    assert ids(stac, settings) == days
    assert [body.get("token", 0) for body in stac.searches] == [0, 3, 6]


def test_more_pages_than_are_read_are_told(
    stac: StacApi, settings: Settings, days: list[str]
) -> None:
    stac.page = 3
    with pytest.raises(TaskError, match="more than 2 pages of s2") as failure:
        ids(stac, settings, most_pages=2)
    assert failure.value.code == "too_many"


def test_a_page_that_follows_itself_ends(
    stac: StacApi, settings: Settings, days: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stac.page = 3
    monkeypatch.setattr(stac, "_next", lambda *_: StacApi._next(stac, {}, 0))
    assert set(ids(stac, settings)) == set(days[:3])


def test_a_busy_api_is_asked_again_when_it_says(
    stac: StacApi, settings: Settings, days: list[str]
) -> None:
    stac.refusals = [(429, {"Retry-After": "0"}), (503, {"Retry-After": "0"})]
    assert ids(stac, settings) == days


@pytest.mark.parametrize(
    ("status", "headers", "code", "says", "again"),
    [
        (429, {"Retry-After": "4000"}, "unreachable", "HTTP 429", True),
        (400, {}, "unreachable", "refuses the search (HTTP 400)", False),
        (403, {}, "forbidden", "may not be searched", False),
        (302, {"Location": "/elsewhere"}, "unreachable", "redirects to", False),
        (307, {"Location": "http://10.0.0.1/search"}, "forbidden_address", "not allowed", False),
        (307, {"Location": "file:///etc/passwd"}, "forbidden_address", "not allowed", False),
    ],
)
def test_refusals_say_what_is_wrong(
    stac: StacApi,
    settings: Settings,
    *,
    status: int,
    headers: dict[str, str],
    code: str,
    says: str,
    again: bool,
) -> None:
    stac.refusals = [(status, headers)] * 3
    with pytest.raises(TaskError) as failure:
        ids(stac, settings)
    assert (failure.value.code, failure.value.retryable) == (code, again)
    assert says in str(failure.value)


def test_a_redirect_of_the_search_itself_is_followed(
    stac: StacApi, settings: Settings, days: list[str]
) -> None:
    stac.refusals = [(307, {"Location": f"{stac.url}/search"})]
    assert ids(stac, settings) == days


def test_a_next_page_elsewhere_is_not_asked_for(
    stac: StacApi, settings: Settings, days: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stac.page = 3
    link = {"rel": "next", "href": "http://169.254.169.254/latest/meta-data"}
    monkeypatch.setattr(stac, "_next", lambda *_: link)
    with pytest.raises(TaskError) as failure:
        ids(stac, settings)
    assert failure.value.code == "forbidden_address"


def test_a_machine_that_is_not_allowed_is_not_asked(stac: StacApi, settings: Settings) -> None:
    closed = settings.model_copy(
        update={"fetch": settings.fetch.model_copy(update={"allowed_hosts": ()})}
    )
    source = StacSearch(
        type="stac", url=stac.url.replace("127.0.0.1", "localhost"), collection=COLLECTION
    )
    with pytest.raises(TaskError, match="not a public address"):
        list(search(source, AREA, JUNE, closed))
    assert stac.searches == []


def test_days_are_those_of_the_sun_over_the_area() -> None:
    evening = dt.datetime(2024, 6, 29, 22, 30, tzinfo=dt.UTC)
    assert solar_day(evening, 178.0) == dt.date(2024, 6, 30)  # Fiji, in the morning
    assert solar_day(evening, -120.0) == dt.date(2024, 6, 29)


def test_granules_of_a_solar_day_are_found_on_either_side_of_midnight(
    stac: StacApi, settings: Settings
) -> None:
    for moment in ("2024-06-29T11:00:00Z", "2024-06-29T22:30:00Z", "2024-06-30T22:30:00Z"):
        stac.granule(
            moment, moment, {"red": pixels(600)}, crs="EPSG:32760", corner=(600_000, 8_000_000)
        )
    area = box(178.0, -18.2, 178.1, -18.1)
    (period,) = periods_of(["2024-06-30"])
    found = find(Question(described(stac), {}, area), period, settings)
    assert [one.granule.id for one in found] == ["2024-06-29T22:30:00Z"]


def test_days_and_periods_that_touch_are_searched_as_one() -> None:
    day = dt.date
    assert periods_of(["2024-06-03", "2024-06-01_2024-06-02", "2024-07-01", "2024-06-02"]) == [
        (day(2024, 6, 1), day(2024, 6, 3)),
        (day(2024, 7, 1), day(2024, 7, 1)),
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"geometry": None, "bbox": None},
        {"geometry": {"type": "Polygon", "coordinates": [[[0, 0]]]}},
        {"geometry": {"type": "Polygon", "coordinates": "nonsense"}},
        {"properties": {"datetime": "yesterday"}},
        {"properties": None, "assets": None},
        {"id": 7},
    ],
)
def test_an_item_that_is_none_is_passed_over(
    stac: StacApi, settings: Settings, days: list[str], change: dict[str, Any]
) -> None:
    stac.items[0]["links"] = None
    original = stac.found

    def spoiled(query: Any) -> list[dict[str, Any]]:
        first, *others = original(query)
        return [first | change, *others]

    stac.found = spoiled  # type: ignore[method-assign]
    (period,) = periods_of(["2024-06-01_2024-06-30"])
    found = find(Question(described(stac), {}, box(*AREA)), period, settings)
    assert [one.granule.id for one in found] == days[1:]
