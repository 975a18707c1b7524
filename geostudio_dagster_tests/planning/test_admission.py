"""The gate: what is refused, in what words, and that nothing is written then."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from geostudio_dagster.catalog import Catalog, RequestStatus
from geostudio_dagster.errors import Conflict, InvalidRequest
from geostudio_dagster.models.bundle import load_bundle
from geostudio_dagster.planning.admission import admit
from geostudio_dagster.planning.request import SpatialDomain, parse_request, parse_request_json
from geostudio_dagster.settings import Settings

SQUARE = {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]]}
URL = "https://example.org/scene.tif"


@pytest.fixture
def catalog(settings: Settings, bundle_folder: Path) -> Iterator[Catalog]:
    """A catalog that knows the demo model."""
    settings.data_folder.mkdir(parents=True)
    opened = Catalog.open(settings.catalog_url)
    opened.migrate()
    opened.register_model(load_bundle(bundle_folder), uri=str(bundle_folder), owner="tests")
    yield opened
    opened.close()


def document(**changes: Any) -> dict[str, Any]:
    return {"model": "demo-land-cover", "spatial_domain": {"urls": [URL]}, **changes}


def test_a_good_request_waits_to_be_planned(catalog: Catalog, settings: Settings) -> None:
    identifier = str(uuid4())
    good = document(id=identifier, temporal_domain=["2024-06-30"], shard_size=3, priority=7)
    request = admit(good, catalog, settings, owner="ann")
    assert request.id == identifier
    assert request.status is RequestStatus.PENDING
    assert (request.owner, request.priority) == ("ann", 7)
    assert parse_request(request.spec).model_dump(exclude={"id"}) == parse_request(good).model_dump(
        exclude={"id"}
    )
    assert catalog.model(request.model_id).name == "demo-land-cover"


def test_the_same_request_twice_is_one(catalog: Catalog, settings: Settings) -> None:
    once = document(id=str(uuid4()))
    first = admit(once, catalog, settings, owner="ann")
    assert admit(parse_request(once), catalog, settings, owner="ann") == first
    assert [request.id for request in catalog.requests()] == [first.id]
    with pytest.raises(Conflict):
        admit({**once, "name": "another"}, catalog, settings, owner="ann")


def test_requests_without_id_are_different(catalog: Catalog, settings: Settings) -> None:
    first, second = (admit(document(), catalog, settings, owner="ann") for _ in range(2))
    assert first.id != second.id


@pytest.mark.parametrize("reference", ["demo-land-cover", "demo-land-cover@1"])
def test_ways_to_name_a_model(reference: str, catalog: Catalog, settings: Settings) -> None:
    assert admit(document(model=reference), catalog, settings, owner="ann").model_id


def test_local_scenes_of_the_installation(catalog: Catalog, settings: Settings) -> None:
    path = settings.data_folder / "scenes" / "a.tif"
    domain = {"urls": [str(path), path.with_name("b.tif").as_uri()]}
    assert admit(document(spatial_domain=domain), catalog, settings, owner="ann")


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"model": "demo-land-cove"}, "model", "use one of demo-land-cover"),
    ({"model": "demo-land-cover@9"}, "model", "demo-land-cover"),
    ({"model": "quite another"}, "model", "use one of demo-land-cover"),
    ({"spatial_domain": {"urls": ["ftp://example.org/a.tif"]}}, "spatial_domain.urls.0", "http"),
    ({"spatial_domain": {"urls": [URL, "/etc/passwd"]}}, "spatial_domain.urls.1", "outside"),
    ({"spatial_domain": {"urls": ["/vsicurl/http://x/a.tif"]}}, "spatial_domain.urls.0", "outside"),
    ({"spatial_domain": {"urls": ["https://u:p@x.org/a"]}}, "spatial_domain.urls.0", "password"),
    ({"spatial_domain": {"urls": ["http://169.254.169.254/a"]}}, "spatial_domain.urls.0", "public"),
    ({"spatial_domain": {"urls": ["http://[::1]:80/a.tif"]}}, "spatial_domain.urls.0", "public"),
    ({"spatial_domain": {"urls": [URL, URL]}}, "spatial_domain.urls", "twice"),
    ({"spatial_domain": {"urls": []}}, "spatial_domain", "is empty"),
    ({"spatial_domain": {"urls": [""]}}, "spatial_domain.urls.0", "at least 1"),
    ({"spatial_domain": {}}, "spatial_domain", "is empty"),
    ({"spatial_domain": {"bbox": [[0, 1, 1, 0]]}}, "spatial_domain.bbox", "not below"),
    ({"spatial_domain": {"bbox": [[0, 0, 1, 91]]}}, "spatial_domain.bbox", "off the globe"),
    ({"spatial_domain": {"bbox": [[-200, 0, 1, 1]]}}, "spatial_domain.bbox", "off the globe"),
    ({"spatial_domain": {"bbox": [[0, 0, 1]]}}, "spatial_domain.bbox.0.3", "missing"),
    ({"spatial_domain": {"bbox": [[0, 0, 1, 1]]}}, "spatial_domain.bbox", "no data source"),
    ({"spatial_domain": {"urls": [URL], "tiles": ["33UWP"]}}, "spatial_domain.tiles", "urls"),
    ({"spatial_domain": {"polygons": [SQUARE]}}, "spatial_domain.polygons", "no data source"),
    ({"spatial_domain": {"polygons": [{"type": "Polygon"}]}},
     "spatial_domain.polygons.0", "GeoJSON"),
    ({"spatial_domain": {"polygons": [{"type": "Point", "coordinates": [0, 0]}]}},
     "spatial_domain.polygons.0", "a Point"),
    ({"spatial_domain": {"polygons": [{"type": "Polygon", "coordinates": []}]}},
     "spatial_domain.polygons.0", "empty"),
    ({"spatial_domain": {"polygons": [
        {"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [1, 0], [0, 1], [0, 0]]]}]}},
     "spatial_domain.polygons.0", "Self-intersection"),
    ({"spatial_domain": {"polygons": [
        {"type": "Polygon", "coordinates": [[[500, 0], [501, 0], [501, 1], [500, 0]]]}]}},
     "spatial_domain.polygons.0", "off the globe"),
    ({"temporal_domain": ["2024-13-01"]}, "temporal_domain", "2024-06-30"),
    ({"temporal_domain": ["last week"]}, "temporal_domain", "is not a date"),
    ({"temporal_domain": ["2024-06-30_2024-06-01"]}, "temporal_domain", "before"),
    ({"temporal_domain": ["2024-06-01_"]}, "temporal_domain", "is not a date"),
    ({"temporal_domain": ["2024-06-01_2024-06-30"]}, "temporal_domain.0", "one date"),
    ({"temporal_domain": ["2024-06-01", "2024-06-02"]}, "temporal_domain", "do not fit"),
    ({"colour": "red"}, "colour", "known"),
    ({"shard_size": 0}, "shard_size", "greater than"),
    ({"task_size": 10}, "task_size", "greater than"),
    ({"id": "one"}, "id", "UUID"),
    ({"priority": 101}, "priority", "less than"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "field", "says"), REFUSED)
def test_refused_in_one_sentence_and_nothing_written(
    changes: dict[str, Any], field: str, says: str, *, catalog: Catalog, settings: Settings
) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        admit(document(**changes), catalog, settings, owner="ann")
    assert refusal.value.field == field
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert catalog.requests() == []


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\ud800", b"\xff\xfe\x00"])
def test_not_json(text: str | bytes) -> None:
    with pytest.raises(InvalidRequest, match="is not JSON"):
        parse_request_json(text)


def test_more_scenes_than_tasks_allowed(catalog: Catalog, settings: Settings) -> None:
    few = settings.model_copy(update={"max_tasks": 2})
    urls = [f"{URL}?{n}" for n in range(3)]
    with pytest.raises(InvalidRequest, match="3 scenes are more than the 2 tasks"):
        admit(document(spatial_domain={"urls": urls}), catalog, few, owner="ann")
    assert catalog.requests() == []


def test_a_date_for_each_scene(catalog: Catalog, settings: Settings) -> None:
    domain = {"urls": [f"{URL}?{n}" for n in range(2)]}
    dates = ["2024-06-01", "2024-06-02"]
    assert admit(
        document(spatial_domain=domain, temporal_domain=dates), catalog, settings, owner="ann"
    )


def test_no_model_at_all(settings: Settings) -> None:
    settings.data_folder.mkdir(parents=True)
    empty = Catalog.open(settings.catalog_url)
    empty.migrate()
    with pytest.raises(InvalidRequest, match="models add"):
        admit(document(), empty, settings, owner="ann")
    empty.close()


class Compared(str):
    """Text that counts how often it is compared with another."""

    __slots__ = ()
    times = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        Compared.times += 1
        return str.__eq__(self, other)


def test_a_duplicate_among_very_many_urls_is_found_by_few_comparisons() -> None:
    urls = [f"https://example.org/{number}.tif" for number in range(50_000)]
    with pytest.raises(InvalidRequest, match=r"names https://example\.org/49999\.tif twice"):
        parse_request({"model": "m", "spatial_domain": {"urls": [*urls, urls[-1]]}})
    # One by one with all others would be a thousand million.
    compared = tuple(map(Compared, [*urls, urls[-1]]))
    with pytest.raises(ValueError, match="twice"):
        SpatialDomain._each_once(compared)
    assert 1 <= Compared.times < 2 * len(urls)
