"""What areas and days become: tasks, or a sentence on why there are none."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from shapely.geometry import shape

from geostudio_dagster.catalog import ModelRecord
from geostudio_dagster.errors import InvalidRequest
from geostudio_dagster.installation import Installation
from geostudio_dagster.models.registration import register_bundle
from geostudio_dagster.pipeline.plans import plan_request
from geostudio_dagster_tests.areas.conftest import (
    AREA,
    DAY,
    brought,
    described,
    pixels,
    scene_of,
    submit_area,
)
from geostudio_dagster_tests.driving import path_of, tasks_of
from geostudio_dagster_tests.emulators.stac_api import StacApi
from geostudio_dagster_tests.prediction.builders import Identity, write_bundle

BOTH = {"red": pixels(seed=1), "nir": pixels(seed=2)}


def refusal(installation: Installation, request: str) -> str:
    """Why a request was not planned."""
    with pytest.raises(InvalidRequest):
        plan_request(installation, request)
    record = installation.catalog.request(request)
    assert record.status == "FAILED"
    return str(record.error)


def test_each_day_with_data_is_a_scene(
    installation: Installation, model: ModelRecord, stac: StacApi
) -> None:
    for day in ("2024-06-05", "2024-06-25", "2024-07-05"):
        stac.granule(day, f"{day}T10:00:00Z", BOTH)
    stac.granule("again", "2024-06-05T10:00:25Z", BOTH)
    request = submit_area(installation, model, "2024-06-01_2024-06-30", "2024-07-01_2024-07-02")
    plan_request(installation, request)
    tasks = tasks_of(installation, request)
    assert [(task.id, task.date) for task in tasks] == [
        (f"{request}-task_0", "2024-06-05"),
        (f"{request}-task_1", "2024-06-25"),
    ]
    estimate = installation.catalog.request(request).estimate
    assert estimate["dates"] == ["2024-06-05", "2024-06-25"]
    assert estimate["granules"] == 3
    assert estimate["missing"] == ["2024-07-01_2024-07-02: there is no data of these areas."]
    assert len(stac.searches) == 1  # the periods touch


def test_tiles_without_data_or_outside_of_the_polygon_are_no_tasks(
    installation: Installation, model: ModelRecord, stac: StacApi
) -> None:
    stac.granule("a", f"{DAY}T10:00:00Z", {name: band[:, :200] for name, band in BOTH.items()})
    west, south, east, north = AREA
    ring = [[west, north], [west, south], [east, north], [west, north]]
    polygon = {"type": "Polygon", "coordinates": [ring]}
    whole = submit_area(installation, model, task_size=256)
    part = submit_area(installation, model, task_size=256, spatial_domain={"polygons": [polygon]})
    for request, count in ((whole, 4), (part, 3)):
        plan_request(installation, request)
        tasks = tasks_of(installation, request)
        assert [task.window[0] for task in tasks if task.window] == [0, 0]
        assert [task.id for task in tasks] == [f"{request}-task_0_0", f"{request}-task_0_2"][
            : len(tasks)
        ]
        (note,) = installation.catalog.request(request).estimate["missing"]
        assert note == f"{DAY}: {count - 2} of {count} tiles have no data."
    outlines = json.loads(path_of(installation, whole, "tasks_geojson").read_text())
    places = [shape(feature["geometry"]) for feature in outlines["features"]]
    assert all(place.intersects(shape(stac.items[0]["geometry"])) for place in places)


def test_no_data_at_all_says_when_there_is_some(
    installation: Installation, model: ModelRecord, stac: StacApi
) -> None:
    for day, cloud in (("2024-06-20", 5), ("2024-06-29", 90), ("2024-07-04", 5)):
        stac.granule(day, f"{day}T10:00:00Z", BOTH, cloud=cloud)
    said = refusal(installation, submit_area(installation, model, maxcc=50))
    assert said == (
        "temporal_domain: lab sentinel has no data of these areas on 2024-06-30; the nearest "
        "dates are 2024-06-20 and 2024-07-04."
    )
    cloudy = refusal(installation, submit_area(installation, model, "2024-06-29", maxcc=50))
    assert "1 granules are left out, cloudier than 50 %" in cloudy
    elsewhere = submit_area(installation, model, spatial_domain={"bbox": [[0, 0, 1, 1]]})
    assert "there is none within 45 days either" in refusal(installation, elsewhere)


def test_an_api_that_fails_fails_the_plan_in_one_sentence(
    installation: Installation, model: ModelRecord, stac: StacApi
) -> None:
    stac.refusals = [(400, {})] * 9
    said = refusal(installation, submit_area(installation, model))
    assert "lab sentinel cannot be searched" in said
    assert "HTTP 400" in said


def test_more_tasks_or_pixels_than_allowed_are_refused(
    installation: Installation, model: ModelRecord, stac: StacApi
) -> None:
    stac.granule("a", f"{DAY}T10:00:00Z", BOTH)
    limits = installation.settings.limits.model_copy(update={"max_mpx": 0.1})
    for change, says in (({"max_tasks": 2}, "more than 2 tasks"), ({"limits": limits}, "Mpx")):
        strict = installation.settings.model_copy(update=change)
        place = Installation(strict, installation.catalog, installation.storage)
        said = refusal(place, submit_area(installation, model, task_size=256))
        assert says in said
        assert said.startswith("spatial_domain: the areas")


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        ({"temporal_domain": []}, "temporal_domain", "days or periods"),
        ({"source": {"connector": "lab", "collection": "x"}}, "source", "use lab sentinel"),
        ({"spatial_domain": {"tiles": ["nowhere"]}}, "spatial_domain.tiles.0", "33UWP"),
        (
            {"spatial_domain": {"bbox": [AREA], "urls": ["https://example.org/a.tif"]}},
            "spatial_domain.bbox",
            "beside urls",
        ),
        (
            {"masking": {"band": "QA", "encoding": "hls_fmask", "kinds": ["cloud"]}},
            "source",
            "none has B04, nir, QA",
        ),
        ({"maxcc": 101}, "maxcc", "less than"),
    ],
)
def test_what_no_source_serves_is_refused_at_once(
    installation: Installation, model: ModelRecord, *, change: dict[str, Any], field: str, says: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        submit_area(installation, model, **change)
    assert refused.value.field == field
    assert says in str(refused.value)
    assert installation.catalog.requests() == []


def test_of_several_sources_one_is_named(
    installation: Installation, model: ModelRecord, stac: StacApi
) -> None:
    first = described(stac)
    other = first.model_copy(update={"collection_name": "landsat"})
    settings = installation.settings.model_copy(update={"stac": (first, other)})
    place = Installation(settings, installation.catalog, installation.storage)
    with pytest.raises(InvalidRequest, match="name one of lab sentinel, lab landsat"):
        submit_area(place, model)
    use = {"connector": "lab", "collection": "landsat"}
    request = place.catalog.request(submit_area(place, model, source=use))
    assert request.spec["source"] == use


def test_models_that_areas_cannot_feed_are_refused(
    installation: Installation, tmp_path: Any
) -> None:
    for name, more in (
        ("times", {"dates": 3}),
        ("sensors", {"bands": [{"name": "red", "modality": m} for m in ("a", "b")]}),
    ):
        bundle = write_bundle(tmp_path / name, Identity(), **{"bands": 1, "name": name, **more})
        record = register_bundle(installation, bundle.folder, owner="tests")
        with pytest.raises(InvalidRequest) as refused:
            submit_area(installation, record)
        assert refused.value.field == "model"


def test_areas_on_both_sides_of_the_date_line_are_scenes_of_their_own(
    installation: Installation, model: ModelRecord, stac: StacApi
) -> None:
    flat = np.full((2500, 2500), 321, np.uint16)
    both = {"red": flat, "nir": flat}
    stac.granule("60", "2024-06-29T22:30:00Z", both, crs="EPSG:32760", corner=(800_000, 8_020_000))
    stac.granule("01", "2024-06-30T22:30:00Z", both, crs="EPSG:32701", corner=(170_000, 8_020_000))
    domain = {"bbox": [[179.98, -18.0, -179.98, -17.98]]}
    tasks = brought(installation, submit_area(installation, model, spatial_domain=domain))
    assert [task.date for task in tasks] == [DAY, DAY]  # by the sun, on either side
    for task, crs in zip(tasks, ("EPSG:32760", "EPSG:32701"), strict=True):
        with scene_of(installation, task) as scene:
            assert scene.crs.to_string() == crs
            assert (scene.read(1) == 321).mean() > 0.9
