from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio
from affine import Affine
from pystac.extensions.classification import ClassificationExtension
from pystac.extensions.projection import ProjectionExtension
from pystac.validation import set_validator
from pystac.validation.stac_validator import JsonSchemaSTACValidator
from shapely.geometry import box, shape

from geostudio_dagster.catalog import (
    ArtifactRecord,
    ModelRecord,
    RequestRecord,
    RequestStatus,
    StepStatus,
    TaskRecord,
)
from geostudio_dagster.publish.stac import item_json, task_item, without_secrets
from geostudio_dagster_tests.conftest import shared_or_skip
from geostudio_dagster_tests.publish.rasters import (
    class_manifest,
    halves,
    regression_manifest,
    write_cog,
)
from geostudio_dagster_tests.publish.stac_schemas import offline_validator

REQUEST = "6238a5ea-781a-431e-8668-b0de515ea0c8"
TASK = f"{REQUEST}-task_0"
CREATED = dt.datetime(2026, 11, 20, 17, 30, 15, 521137, tzinfo=dt.UTC)
COG = "image/tiff; application=geotiff; profile=cloud-optimized"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Validation against schemas at hand; fetching any other one is an error."""

    def refuse(*arguments: object) -> str:
        raise AssertionError(f"fetched {arguments[1:]}")

    monkeypatch.setattr(pystac.StacIO.default(), "read_text", refuse, raising=False)
    set_validator(offline_validator())
    yield
    set_validator(JsonSchemaSTACValidator())


def request(**spec: Any) -> RequestRecord:
    return RequestRecord(
        id=REQUEST,
        model_id="m",
        spec=spec,
        owner="tests",
        status=RequestStatus.RUNNING,
        error=None,
        priority=0,
        n_tasks=1,
        estimate={},
        cancel_requested=False,
        publish_attempt=0,
        publish_run_id=None,
        created_at=CREATED,
        updated_at=CREATED,
        finished_at=None,
    )


def task(**changes: Any) -> TaskRecord:
    values: dict[str, Any] = {
        "id": TASK,
        "request_id": REQUEST,
        "shard_key": f"{REQUEST}/00000",
        "number": 0,
        "url": "https://user:key@example.org/scenes/a.tif?X-Amz-Signature=abc#x",
        "date": "2024-06-30",
        "window": None,
        "scene_size": (64, 64),
        "footprint": None,
        "pixels": 4096,
        "status": StepStatus.RUNNING,
        "error": None,
        "steps": (),
    }
    return TaskRecord(**{**values, **changes})


def model(manifest: Any = None) -> ModelRecord:
    manifest = manifest or class_manifest()
    return ModelRecord(
        id="m",
        name=manifest.name,
        version=3,
        digest="ab" * 32,
        uri="/models/x",
        manifest=manifest.model_dump(mode="json"),
        owner="tests",
        created_at=CREATED,
    )


def artifact(name: str, key: str, media_type: str = COG) -> ArtifactRecord:
    return ArtifactRecord(TASK, name, key, media_type, 1234, "cd" * 32)


ARTIFACTS = [
    artifact("prediction", f"{REQUEST}/{TASK}/{TASK}_pred.tif"),
    artifact("rgb", f"{REQUEST}/{TASK}/{TASK}_rgb.tif"),
    artifact("quicklook", f"{REQUEST}/{TASK}/{TASK}_quicklook.png", "image/png"),
    artifact("stats", f"{REQUEST}/{TASK}/{TASK}_stats.json", "application/json"),
    artifact("archive", f"{REQUEST}/{TASK}/archive.zip", "application/zip"),
    artifact("scene", f"{REQUEST}/scenes/0a1b.tif"),
    artifact("unknown", f"{REQUEST}/{TASK}/other.bin"),
]


def make(folder: Path, **changes: Any) -> pystac.Item:
    arguments: dict[str, Any] = {
        "request": request(),
        "task": task(),
        "model": model(),
        "artifacts": ARTIFACTS,
        "gateway_url": "http://127.0.0.1:8091/",
    } | changes
    prediction = arguments.pop("prediction", None) or write_cog(folder / "pred.tif", halves())
    positional = [arguments.pop(name) for name in ("request", "task", "model", "artifacts")]
    return task_item(*positional, prediction, **arguments)


def check(item: pystac.Item) -> dict[str, Any]:
    """The item as others read it back; valid, and not changed by reading."""
    document: dict[str, Any] = json.loads(item_json(item))
    assert document["stac_version"] == "1.1.0"
    read = pystac.Item.from_dict(document)
    assert len(read.validate()) == 1 + len(document["stac_extensions"])
    assert read.to_dict(include_self_link=False, transform_hrefs=False) == document
    return document


def test_a_segmentation_is_described_whole(tmp_path: Path) -> None:
    statistics = {"classes": [{"value": 1, "pixels": 2048, "share": 0.5}]}
    item = make(tmp_path, statistics=statistics, software={"torch": "2.13.0"})
    document = check(item)
    properties = document["properties"]
    assert properties["datetime"] == "2024-06-30T00:00:00Z"
    assert properties["proj:code"] == "EPSG:32633"
    assert properties["proj:shape"] == [64, 64]
    assert properties["proj:transform"] == [10, 0, 600_000, 0, -10, 5_340_000]
    assert properties["processing:software"]["torch"] == "2.13.0"
    assert properties["processing:software"]["model demo-water"] == f"3 (sha256 {'ab' * 32})"
    assert properties["geostudio:datetime_source"] == "the task's date"
    assert {key: asset["href"] for key, asset in document["assets"].items()} == {
        "prediction": f"./{TASK}_pred.tif",
        "rgb": f"./{TASK}_rgb.tif",
        "thumbnail": f"./{TASK}_quicklook.png",
        "stats": f"./{TASK}_stats.json",
        "archive": "./archive.zip",
        "input": f"../../{REQUEST}/scenes/0a1b.tif",
    }
    thumbnail = document["assets"]["thumbnail"]
    assert (thumbnail["type"], thumbnail["roles"]) == ("image/png", ["thumbnail", "overview"])
    assert document["assets"]["prediction"]["bands"] == [
        {
            "name": "class",
            "data_type": "uint8",
            "nodata": 255,
            "raster:sampling": "area",
            "raster:spatial_resolution": 10.0,
        }
    ]
    assert {(link["rel"], link["href"]) for link in document["links"]} == {
        ("derived_from", "https://example.org/scenes/a.tif"),
        ("alternate", f"http://127.0.0.1:8091/maps/{REQUEST}"),
    }
    assert "Signature" not in item_json(item).decode()


def test_pystac_reads_the_extensions(tmp_path: Path) -> None:
    statistics = {"classes": [{"value": 1, "pixels": 2048, "share": 0.5}]}
    item = pystac.Item.from_dict(check(make(tmp_path, statistics=statistics)))
    projection = ProjectionExtension.ext(item)
    assert (projection.epsg, projection.shape) == (32633, [64, 64])
    classes = ClassificationExtension.ext(item.assets["prediction"]).classes
    assert classes is not None
    assert [(c.value, c.name, c.title, c.color_hint, c.nodata) for c in classes] == [
        (0, "Land_soil", "Land & soil", "D9C27E", None),
        (1, "Water_open", "Water <open>", "1F78B4", None),
        (2, "Cloud", "Cloud", "FFFFFF", None),
        (255, "nodata", "No data", None, True),
    ]
    assert (classes[1].count, classes[1].percentage) == (2048, 50)


def test_the_same_task_gives_the_same_bytes(tmp_path: Path) -> None:
    first = item_json(make(tmp_path))
    again = item_json(make(tmp_path, artifacts=ARTIFACTS[::-1]))
    assert first == again


def test_the_geometry_lies_where_the_raster_does(tmp_path: Path) -> None:
    document = check(make(tmp_path))
    outline = shape(document["geometry"])
    assert outline.is_valid
    assert outline.exterior.is_ccw
    assert tuple(document["bbox"]) == pytest.approx(outline.bounds, abs=1e-6)
    assert 16.34 < document["bbox"][0] < 16.36
    # The outline of a UTM raster is a little turned: the box around it is larger.
    assert 0.9 < outline.area / box(*outline.bounds).area < 1


def test_across_the_antimeridian_there_are_two_parts(tmp_path: Path) -> None:
    pixels = halves(128)
    prediction = write_cog(
        tmp_path / "fiji.tif",
        pixels,
        crs="EPSG:32701",
        origin=(160_000.0, 8_020_000.0),
        resolution=1000.0,
    )
    document = check(make(tmp_path, prediction=prediction))
    assert document["bbox"][0] > 170
    assert document["bbox"][2] < -170
    geometry = shape(document["geometry"])
    assert geometry.geom_type == "MultiPolygon"
    assert geometry.is_valid
    assert geometry.bounds[0] == -180
    assert geometry.bounds[2] == 180


def test_a_raster_over_the_pole_has_a_box_up_to_it(tmp_path: Path) -> None:
    prediction = write_cog(
        tmp_path / "pole.tif",
        halves(64),
        crs="EPSG:3413",
        origin=(-320_000.0, 320_000.0),
        resolution=10_000.0,
    )
    document = check(make(tmp_path, prediction=prediction))
    assert document["bbox"][3] == 90
    assert document["bbox"][0] == -180
    assert document["bbox"][2] == 180
    assert shape(document["geometry"]).is_valid


def test_rows_that_run_northwards_change_no_box(tmp_path: Path) -> None:
    north_up = write_cog(tmp_path / "a.tif", halves(64))
    with rasterio.open(north_up) as source:
        profile, pixels, bounds = source.profile, source.read(), list(source.bounds)
    flipped = tmp_path / "b.tif"
    profile["transform"] = profile["transform"] @ Affine(1, 0, 0, 0, -1, 64)
    with rasterio.open(flipped, "w", **profile) as target:
        target.write(pixels[:, ::-1])
    one, other = (
        check(make(tmp_path, prediction=north_up)),
        check(make(tmp_path, prediction=flipped)),
    )
    assert other["properties"]["proj:bbox"] == one["properties"]["proj:bbox"] == bounds
    assert other["bbox"] == one["bbox"]
    assert shape(other["geometry"]).equals(shape(one["geometry"]))
    assert shape(other["geometry"]).exterior.is_ccw


def test_longitudes_beyond_180_degrees_are_told_as_geojson_has_them(tmp_path: Path) -> None:
    prediction = write_cog(
        tmp_path / "p.tif", halves(64), crs="EPSG:4326", origin=(170.0, 10.0), resolution=0.3125
    )
    document = check(make(tmp_path, prediction=prediction))
    assert document["bbox"] == [170, -10, -170, 10]
    assert document["properties"]["proj:bbox"] == [170, -10, 190, 10]
    parts = shape(document["geometry"]).geoms
    assert sorted(part.bounds for part in parts) == [(-180, -10, -170, 10), (170, -10, 180, 10)]


def test_a_crs_without_a_code_is_given_in_full(tmp_path: Path) -> None:
    crs = "+proj=laea +lat_0=48 +lon_0=16 +ellps=GRS80 +units=m"
    prediction = write_cog(tmp_path / "laea.tif", halves(), crs=crs, origin=(0.0, 0.0))
    properties = check(make(tmp_path, prediction=prediction))["properties"]
    assert properties["proj:code"] is None
    assert "Lambert Azimuthal Equal Area" in properties["proj:wkt2"]
    assert properties["proj:projjson"]["type"] == "ProjectedCRS"


def test_a_real_scene_of_unknown_datum_is_described(tmp_path: Path) -> None:
    source = shared_or_skip("scenes/hls_burnscar_mask_512.tif")
    document = check(make(tmp_path, prediction=source))
    assert document["properties"]["proj:shape"] == [512, 512]
    assert document["properties"]["proj:code"] is None or ":" in document["properties"]["proj:code"]
    assert -125 < document["bbox"][0] < -118
    assert document["assets"]["prediction"]["bands"][0]["nodata"] == -1


def test_a_regression_has_its_unit_and_no_classes(tmp_path: Path) -> None:
    pixels = np.linspace(0, 100, 64 * 64, dtype=np.float32).reshape(1, 64, 64)
    prediction = write_cog(tmp_path / "p.tif", pixels, nodata=-9999)
    document = check(make(tmp_path, prediction=prediction, model=model(regression_manifest())))
    band = document["assets"]["prediction"]["bands"][0]
    assert (band["data_type"], band["nodata"], band["unit"]) == ("float32", -9999, "t/ha")
    assert "classification:classes" not in document["assets"]["prediction"]
    assert not any("classification" in address for address in document["stac_extensions"])


def test_nan_as_nodata_is_valid_json(tmp_path: Path) -> None:
    prediction = write_cog(
        tmp_path / "p.tif", np.zeros((1, 64, 64), np.float32), nodata=float("nan")
    )
    document = check(make(tmp_path, prediction=prediction, model=model(regression_manifest())))
    assert document["assets"]["prediction"]["bands"][0]["nodata"] == "nan"


def test_a_range_of_dates_is_a_start_and_an_end(tmp_path: Path) -> None:
    properties = check(make(tmp_path, task=task(date="2024-06-01_2024-06-30")))["properties"]
    assert properties["datetime"] is None
    assert properties["start_datetime"] == "2024-06-01T00:00:00Z"
    assert properties["end_datetime"] == "2024-06-30T23:59:59Z"


def test_a_task_without_a_date_takes_the_scenes_tag(tmp_path: Path) -> None:
    scene = write_cog(tmp_path / "scene.tif", halves())
    with rasterio.open(scene, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as dataset:
        dataset.update_tags(TIFFTAG_DATETIME="2023:05:06 10:11:12")
    properties = check(make(tmp_path, task=task(date=None), scene=scene))["properties"]
    assert properties["datetime"] == "2023-05-06T10:11:12Z"
    assert properties["geostudio:datetime_source"] == "the scene's TIFF DateTime tag"


def test_a_task_without_any_date_says_whose_time_it_has(tmp_path: Path) -> None:
    scene = write_cog(tmp_path / "scene.tif", halves())
    properties = check(make(tmp_path, task=task(date=None), scene=scene))["properties"]
    assert properties["datetime"] == "2026-11-20T17:30:15.521137Z"
    assert properties["geostudio:datetime_source"].startswith("the request's creation")


def test_what_lies_beside_the_scene_tells_no_date(tmp_path: Path) -> None:
    scene = write_cog(tmp_path / "scene.tif", halves())
    told = '<MDI key="TIFFTAG_DATETIME">2023:05:06 10:11:12</MDI>'
    document = f"<PAMDataset><Metadata>{told}</Metadata></PAMDataset>"
    (tmp_path / "scene.tif.aux.xml").write_text(document)
    properties = check(make(tmp_path, task=task(date=None), scene=scene))["properties"]
    assert properties["geostudio:datetime_source"].startswith("the request's creation")


def test_a_scene_outside_the_storage_keeps_its_address(tmp_path: Path) -> None:
    outside = artifact("scene", "file:///data/scenes/a.tif")
    document = check(make(tmp_path, artifacts=[outside], task=task(url="/data/scenes/a.tif")))
    assert document["assets"]["input"]["href"] == "file:///data/scenes/a.tif"
    assert [link["rel"] for link in document["links"]] == ["alternate"]


@pytest.mark.parametrize(
    ("address", "kept"),
    [
        ("https://u:p@h.org:8443/a/b.tif?s=1#f", "https://h.org:8443/a/b.tif"),
        ("s3://bucket/key.tif", "s3://bucket/key.tif"),
        ("file:///data/a.tif", "file:///data/a.tif"),
    ],
)
def test_secrets_are_taken_out_of_addresses(address: str, kept: str) -> None:
    assert without_secrets(address) == kept


def test_the_schemas_find_mistakes(tmp_path: Path) -> None:
    item = make(tmp_path)
    item.properties["proj:epsg"] = 32633  # a field of an older version
    with pytest.raises(pystac.STACValidationError):
        item.validate()
