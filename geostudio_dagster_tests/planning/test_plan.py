"""From scenes to tasks and shards."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapely.geometry import box, shape
from shapely.ops import unary_union

from geostudio_dagster.connectors.url import look
from geostudio_dagster.errors import InvalidRequest
from geostudio_dagster.models.bundle import BundleManifest, load_bundle
from geostudio_dagster.planning.plan import STEPS, _shards, make_plan, tasks_geojson
from geostudio_dagster.planning.request import RequestSpec, parse_request
from geostudio_dagster.settings import Settings, ShardSettings
from geostudio_dagster_tests.conftest import MakeScene

REQUEST = "3f1c5f0e-0000-4000-8000-000000000001"


@pytest.fixture
def manifest(bundle_folder: Path) -> BundleManifest:
    """The demo model's."""
    return load_bundle(bundle_folder).manifest


def spec(*urls: Path | str, **fields: Any) -> RequestSpec:
    return parse_request(
        {
            "model": "demo-land-cover",
            "spatial_domain": {"urls": [str(url) for url in urls]},
            **fields,
        }
    )


def test_a_small_scene_is_one_task(
    make_scene: MakeScene, settings: Settings, manifest: BundleManifest
) -> None:
    scene = make_scene("scene_2024_06_30.tif")
    plan = make_plan(spec(scene), REQUEST, manifest, settings, None)
    (task,) = plan.tasks
    assert task.id == f"{REQUEST}-task_0"
    assert task.url == str(scene)
    assert task.date == "2024-06-30"
    assert (task.shard, task.window) == (0, None)
    assert task.scene_size == (300, 300)
    assert task.pixels == 90_000
    assert task.steps == STEPS
    assert plan.shard_count == 1
    assert plan.estimate == {
        "tasks": 1,
        "shards": 1,
        "mpx": 0.09,
        "patches": 4,
        "input_bytes": 300 * 300 * 4 * 2,
        "output_bytes": 300 * 300,
        "seconds": 0.3,
        "mpx_per_second": 1.0,
        "speed_is_measured": False,
        "scenes_without_header": 0,
    }


def test_a_large_scene_is_split(
    make_scene: MakeScene, settings: Settings, manifest: BundleManifest
) -> None:
    small, large = make_scene("small.tif"), make_scene("large.tif", size=700, seed=2)
    plan = make_plan(spec(small, large, task_size=512), REQUEST, manifest, settings, 2.0)
    assert [task.id.removeprefix(f"{REQUEST}-") for task in plan.tasks] == [
        "task_0", "task_1_0", "task_1_1", "task_1_2", "task_1_3",
    ]  # fmt: skip
    assert [task.window for task in plan.tasks] == [
        None,
        (0, 0, 512, 512),
        (512, 0, 188, 512),
        (0, 512, 512, 188),
        (512, 512, 188, 188),
    ]
    assert {task.scene_size for task in plan.tasks[1:]} == {(700, 700)}
    assert sum(task.pixels or 0 for task in plan.tasks[1:]) == 490_000
    assert plan.estimate["mpx_per_second"] == 2.0
    assert plan.estimate["speed_is_measured"] is True
    assert plan.estimate["seconds"] == round(5 * 0.25 + 0.58 / 2, 1)


def test_footprints_of_parts_make_up_the_scene(
    make_scene: MakeScene, settings: Settings, manifest: BundleManifest
) -> None:
    scene = make_scene("large.tif", size=700)
    plan = make_plan(spec(scene, task_size=512), REQUEST, manifest, settings, None)
    header = look(str(scene), settings)
    assert header is not None
    whole = shape(header.footprint)
    parts = [shape(task.footprint) for task in plan.tasks]
    assert unary_union(parts).symmetric_difference(whole).area < 1e-5 * whole.area
    assert sum(part.area for part in parts) == pytest.approx(whole.area, rel=1e-6)


def test_an_unreadable_header_is_not_an_error(
    make_scene: MakeScene, settings: Settings, manifest: BundleManifest
) -> None:
    good = make_scene("good.tif", size=700)
    missing = good.with_name("missing_2024-01-02.tif")
    page = good.with_name("page.tif")
    page.write_text("<html>")
    plan = make_plan(spec(missing, good, page, task_size=512), REQUEST, manifest, settings, None)
    ids = [task.id.removeprefix(f"{REQUEST}-") for task in plan.tasks]
    assert ids == ["task_0", "task_1_0", "task_1_1", "task_1_2", "task_1_3", "task_2"]
    for task in (plan.tasks[0], plan.tasks[-1]):
        assert (task.window, task.scene_size, task.footprint, task.pixels) == (None,) * 4
    assert plan.tasks[0].date == "2024-01-02"
    assert plan.estimate["scenes_without_header"] == 2


def test_a_silent_host_is_asked_a_few_times_only(
    settings: Settings, manifest: BundleManifest
) -> None:
    urls = [f"http://127.0.0.1:9/{number}.tif" for number in range(200)]  # nobody listens there
    plan = make_plan(spec(*urls), REQUEST, manifest, settings, None)
    assert len(plan.tasks) == 200
    assert plan.estimate["scenes_without_header"] == 200


def test_scenes_that_a_host_lacks_do_not_speak_against_its_others(
    make_scene: MakeScene,
    serve: Callable[[Path], str],
    settings: Settings,
    manifest: BundleManifest,
) -> None:
    base = serve(make_scene("good.tif", size=64).parent)
    urls = [*(f"{base}/missing_{number}.tif" for number in range(40)), f"{base}/good.tif"]
    plan = make_plan(spec(*urls), REQUEST, manifest, settings, None)
    assert plan.tasks[-1].scene_size == (64, 64)
    assert plan.estimate["scenes_without_header"] == 40


@pytest.mark.parametrize(
    ("dates", "expected"),
    [
        ((), ["2024-06-30", None]),
        (("2020-01-01",), ["2020-01-01", "2020-01-01"]),
        (("2020-01-01", "2020-02-02"), ["2020-01-01", "2020-02-02"]),
    ],
)
def test_dates(
    dates: tuple[str, ...],
    expected: list[str | None],
    *,
    make_scene: MakeScene,
    settings: Settings,
    manifest: BundleManifest,
) -> None:
    scenes = make_scene("a_20240630.tif"), make_scene("b.tif")
    plan = make_plan(spec(*scenes, temporal_domain=dates), REQUEST, manifest, settings, None)
    assert [task.date for task in plan.tasks] == expected


def test_too_many_tasks_after_splitting(
    make_scene: MakeScene, settings: Settings, manifest: BundleManifest
) -> None:
    few = settings.model_copy(update={"max_tasks": 3})
    scene = make_scene("large.tif", size=700)
    with pytest.raises(InvalidRequest, match="more than 3 tasks"):
        make_plan(spec(scene, task_size=512), REQUEST, manifest, few, None)


def test_a_request_without_scenes(settings: Settings, manifest: BundleManifest) -> None:
    area = parse_request({"model": "m", "spatial_domain": {"bbox": [[0, 0, 1, 1]]}})
    with pytest.raises(InvalidRequest, match="at least one scene"):
        make_plan(area, REQUEST, manifest, settings, None)


def test_the_plan_of_a_request_is_always_the_same(
    make_scene: MakeScene, settings: Settings, manifest: BundleManifest
) -> None:
    scenes = [make_scene(f"{n}.tif", size=600, seed=n + 1) for n in range(5)]
    request = spec(*scenes, task_size=512, shard_size=2)
    first = make_plan(request, REQUEST, manifest, settings, 1.5)
    assert make_plan(request, REQUEST, manifest, settings, 1.5) == first
    assert tasks_geojson(first) == tasks_geojson(first)


def test_tasks_as_geojson(
    make_scene: MakeScene, settings: Settings, manifest: BundleManifest
) -> None:
    scene = make_scene("scene_2024-06-30.tif")
    request = spec(scene, scene.with_name("missing.tif"))
    document = json.loads(tasks_geojson(make_plan(request, REQUEST, manifest, settings, None)))
    assert set(document) == {"type", "features"}  # RFC 7946 knows no crs member
    first, second = document["features"]
    assert first["properties"] == {
        "inference_id": REQUEST,
        "task_id": f"{REQUEST}-task_0",
        "date": "2024-06-30",
    }
    outline = shape(first["geometry"])
    assert outline.is_valid
    assert outline.exterior.is_ccw
    assert box(*outline.bounds).area == pytest.approx(outline.area, rel=0.05)
    assert second["geometry"] is None


# Shards


@given(
    st.lists(st.floats(0.25, 500), min_size=1, max_size=300),
    st.none() | st.integers(1, 50),
    st.integers(1, 40),
)
def test_shards_keep_the_order_and_the_limit(
    seconds: list[float], shard_size: int | None, limit: int
) -> None:
    settings = Settings(shards=ShardSettings(max_per_request=limit))
    numbers = _shards(seconds, shard_size, settings)
    assert len(numbers) == len(seconds)
    assert numbers[0] == 0
    assert all(b - a in (0, 1) for a, b in pairwise(numbers))
    assert numbers[-1] < limit


def test_shards_by_count() -> None:
    settings = Settings()
    assert _shards([1.0] * 5, 2, settings) == [0, 0, 1, 1, 2]
    assert _shards([1.0] * 3, 1, settings) == [0, 1, 2]


def test_shards_by_time() -> None:
    settings = Settings(shards=ShardSettings(target_seconds=60))
    assert _shards([25.0] * 5, None, settings) == [0, 0, 1, 1, 2]
    assert _shards([1000.0, 1.0, 1.0], None, settings) == [0, 1, 1]
    assert max(_shards([0.25] * 100_000, None, settings)) == 416
