"""Which granules' pixels a scene is made of, and what becomes of their numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pyproj import Transformer

from geostudio_dagster.catalog import ModelRecord
from geostudio_dagster.installation import Installation
from geostudio_dagster.stac_settings import AssetBand
from geostudio_dagster_tests.areas.conftest import (
    DAY,
    beneath,
    brought,
    described,
    pixels,
    scene_of,
    submit_area,
)
from geostudio_dagster_tests.emulators.stac_api import StacApi


def bands(red: NDArray[Any], **more: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """A granule's bands, of which only red matters."""
    return {"red": red, "nir": np.full_like(red, 5), **more}


def told(**search: Any) -> Any:
    """Marks a test whose source is described otherwise."""
    return pytest.mark.parametrize("search", [search], indirect=True)


@pytest.fixture
def search(request: pytest.FixtureRequest) -> dict[str, Any]:
    """More of how the source is described."""
    return getattr(request, "param", {})


@pytest.fixture
def place(installation: Installation, stac: StacApi, search: dict[str, Any]) -> Installation:
    """The installation with the source described so."""
    settings = installation.settings.model_copy(update={"stac": (described(stac, **search),)})
    return Installation(settings, installation.catalog, installation.storage)


def red_of(place: Installation, model: ModelRecord, **more: Any) -> tuple[NDArray[Any], Any]:
    """The red of the only task's scene, and the same of whatever lies at the usual corner."""
    (task,) = brought(place, submit_area(place, model, **more))
    assert task.error is None
    with scene_of(place, task) as scene:
        return scene.read(1), lambda granule: beneath(scene, granule)


def test_the_least_cloudy_granule_wins_and_the_next_fills_its_gaps(
    place: Installation, model: ModelRecord, stac: StacApi
) -> None:
    clear, cloudy = pixels(seed=1), pixels(seed=2)
    gaps = np.zeros(clear.shape, bool)
    gaps[200:260, 100:400] = True
    stac.granule("b", f"{DAY}T10:00:00Z", bands(np.where(gaps, 0, clear)), cloud=5)
    stac.granule("a", f"{DAY}T10:00:30Z", bands(cloudy), cloud=60)
    made, at = red_of(place, model)
    np.testing.assert_array_equal(made, at(np.where(gaps, cloudy, clear)))


def test_granules_cloudier_than_maxcc_are_left_out(
    place: Installation, model: ModelRecord, stac: StacApi
) -> None:
    half = pixels(seed=1)
    half[:, :300] = 0
    stac.granule("clear", f"{DAY}T10:00:00Z", bands(half), cloud=20)
    stac.granule("cloudy", f"{DAY}T10:00:30Z", bands(pixels(seed=2)), cloud=20.5)
    request = submit_area(place, model, maxcc=20)
    (task,) = brought(place, request)
    with scene_of(place, task) as scene:
        np.testing.assert_array_equal(scene.read(1), beneath(scene, half))
    assert place.catalog.request(request).estimate["missing"] == [
        "1 granules are left out, cloudier than 20 %."
    ]


def test_a_pixel_without_data_in_one_band_is_taken_whole_from_the_next_granule(
    place: Installation, model: ModelRecord, stac: StacApi
) -> None:
    first, second = pixels(seed=1), pixels(seed=2)
    nir = np.full_like(first, 5)
    nir[250:300] = 0
    stac.granule("a", f"{DAY}T10:00:00Z", {"red": first, "nir": nir}, cloud=1)
    stac.granule("b", f"{DAY}T10:00:00Z", bands(second), cloud=2)
    made, at = red_of(place, model)
    np.testing.assert_array_equal(made, at(np.where(nir == 0, second, first)))


@pytest.mark.parametrize(
    ("says", "properties", "added"),
    [
        ({"scale": 1e-4, "offset": -0.1, "nodata": 0}, {}, -1000),
        ({"scale": 1e-4, "offset": -0.1}, {"earthsearch:boa_offset_applied": True}, 0),
        ({"scale": 1e-4, "offset": 0}, {"s2:processing_baseline": "05.09"}, 0),
        (None, {"s2:processing_baseline": "05.09"}, -1000),
        (None, {"s2:processing_baseline": "03.01"}, 0),
        (None, {}, 0),
    ],
)
def test_numbers_are_without_the_offset_that_an_item_tells(
    place: Installation,
    model: ModelRecord,
    stac: StacApi,
    *,
    says: dict[str, Any] | None,
    properties: dict[str, Any],
    added: int,
) -> None:
    numbers = pixels(seed=1)
    numbers[300:320] = 1000  # black, which is not no data
    stac.granule("a", f"{DAY}T10:00:00Z", bands(numbers), told=says, **properties)
    made, at = red_of(place, model)
    expected = np.maximum(numbers.astype(np.int64) + added, 1)
    np.testing.assert_array_equal(made, at(expected))


@told(values="physical")
def test_physical_values_are_scaled(place: Installation, model: ModelRecord, stac: StacApi) -> None:
    numbers = pixels(seed=1)
    numbers[300:320] = 0
    says = {"scale": 1e-4, "offset": -0.1, "nodata": 0}
    stac.granule("a", f"{DAY}T10:00:00Z", bands(numbers), told=says)
    made, at = red_of(place, model)
    assert made.dtype == np.float32
    expected = np.where(numbers == 0, np.nan, numbers * 1e-4 - 0.1)
    np.testing.assert_allclose(made, at(expected), rtol=1e-6, atol=1e-8)


@told(offset="none")
def test_an_offset_that_is_not_in_the_pixels_can_be_switched_off(
    place: Installation, model: ModelRecord, stac: StacApi
) -> None:
    numbers = pixels(seed=1)
    says = {"scale": 1e-4, "offset": -0.1}
    stac.granule("a", f"{DAY}T10:00:00Z", bands(numbers), told=says)
    made, at = red_of(place, model)
    np.testing.assert_array_equal(made, at(numbers))


def test_two_granules_of_two_zones_make_one_scene(
    place: Installation, model: ModelRecord, stac: StacApi
) -> None:
    # Around 18 degrees east, where zone 33 ends: the area's middle lies in it.
    west, south = Transformer.from_crs("EPSG:4326", "EPSG:32633", always_xy=True).transform(18, 48)
    corner = (round(west - 6000, -1), round(south + 3000, -1))
    own = pixels(seed=1)
    own[:, 400:] = 0
    stac.granule("33", f"{DAY}T10:00:00Z", bands(own), corner=corner, cloud=1)
    west, south = Transformer.from_crs("EPSG:4326", "EPSG:32634", always_xy=True).transform(18, 48)
    other = (round(west - 6000, -1), round(south + 6000, -1))
    flat = np.full((1200, 1200), 777, np.uint16)
    stac.granule("34", f"{DAY}T10:00:30Z", bands(flat), crs="EPSG:32634", corner=other, cloud=50)
    (task,) = brought(
        place, submit_area(place, model, spatial_domain={"bbox": [[17.95, 47.99, 18.03, 48.01]]})
    )
    with scene_of(place, task) as scene:
        assert scene.crs.to_string() == "EPSG:32633"
        made = scene.read(1)
        column = round((scene.bounds.left - corner[0]) / 10)
        row = round((corner[1] - scene.bounds.top) / 10)
    beside = own[row : row + made.shape[0], column : column + made.shape[1]]
    seen = np.zeros(made.shape, np.uint16)
    seen[: beside.shape[0], : beside.shape[1]] = beside
    np.testing.assert_array_equal(made, np.where(seen == 0, 777, seen))


def test_bands_of_coarser_pixels_and_codes_come_on_the_scenes_grid(
    place: Installation, model: ModelRecord, stac: StacApi
) -> None:
    codes = np.random.default_rng(3).choice([4, 8, 11], (300, 300)).astype(np.uint8)
    item = stac.granule("a", f"{DAY}T10:00:00Z", bands(pixels(seed=1)))
    coarse = stac.granule("b", f"{DAY}T10:00:00Z", {"scl": codes}, resolution=20.0)
    item["assets"]["scl"] = coarse["assets"]["scl"]
    stac.items.remove(coarse)
    masking = {"band": "SCL", "encoding": "sentinel2_scl", "kinds": ["cloud"]}
    (task,) = brought(place, submit_area(place, model, masking=masking))
    with scene_of(place, task) as scene:
        assert scene.descriptions == ("B04", "nir", "SCL")
        np.testing.assert_array_equal(
            scene.read(3), beneath(scene, codes.repeat(2, axis=0).repeat(2, axis=1))
        )


def test_only_what_is_needed_is_read(
    place: Installation, model: ModelRecord, stac: StacApi
) -> None:
    large = np.random.default_rng(1).integers(1, 10_000, (3000, 3000)).astype(np.uint16)
    stac.granule("a", f"{DAY}T10:00:00Z", bands(large))
    domain = {"bbox": [[15.01, 47.83, 15.02, 47.835]]}
    (task,) = brought(place, submit_area(place, model, spatial_domain=domain))
    assert task.error is None
    read = 0
    for name, asked in stac.reads:
        first, last = asked.removeprefix("bytes=").split("-")
        read += int(last) - int(first) + 1 if name == "a-red.tif" else 0
    assert read < (stac.folder / "a-red.tif").stat().st_size / 4


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda assets: assets.pop("nir"), "no asset nir"),
        (lambda assets: assets["nir"].update(type="image/jp2"), "asset nir is image/jp2"),
        (lambda assets: assets["nir"].update(href="s3://b/k.tif"), "no http(s) address (s3)"),
        (lambda assets: assets["nir"].update(href="file:///etc/passwd"), "no http(s) address"),
        (lambda assets: assets["nir"].update(href="http://10.0.0.1/a.tif"), "not a public address"),
    ],
)
def test_a_granule_without_a_band_is_left_out_and_said_so(
    place: Installation, model: ModelRecord, stac: StacApi, *, change: Any, says: str
) -> None:
    first = stac.granule("a", f"{DAY}T10:00:00Z", bands(pixels(seed=1)), cloud=1)
    change(first["assets"])
    stac.granule("b", f"{DAY}T10:00:00Z", bands(pixels(seed=2)), cloud=2)
    request = submit_area(place, model)
    (task,) = brought(place, request)
    with scene_of(place, task) as scene:
        np.testing.assert_array_equal(scene.read(1), beneath(scene, pixels(seed=2)))
    (note,) = place.catalog.request(request).estimate["missing"]
    assert note.startswith("1 granules are left out")
    assert says in note


def test_an_asset_on_a_machine_that_is_not_allowed_is_not_read(
    place: Installation, model: ModelRecord, stac: StacApi
) -> None:
    item = stac.granule("a", f"{DAY}T10:00:00Z", bands(pixels(seed=1)))
    href = item["assets"]["nir"]["href"]
    item["assets"]["nir"]["href"] = href.replace("127.0.0.1", "localhost")
    (task,) = brought(place, submit_area(place, model))
    assert task.step("url-connector").error_code == "forbidden_address"


def test_an_asset_that_is_no_geotiff_fails_its_task(
    place: Installation, model: ModelRecord, stac: StacApi
) -> None:
    stac.granule("a", f"{DAY}T10:00:00Z", bands(pixels(seed=1)))
    (stac.folder / "a-nir.tif").write_text(
        '<VRTDataset rasterXSize="1" rasterYSize="1"><SRS>EPSG:4326</SRS></VRTDataset>'
    )
    (task,) = brought(place, submit_area(place, model))
    assert task.step("url-connector").error_code == "not_a_raster"


def test_the_same_again_is_the_same_bytes(
    place: Installation, model: ModelRecord, stac: StacApi
) -> None:
    stac.granule("a", f"{DAY}T10:00:00Z", bands(pixels(seed=1)))
    digests = set()
    for _ in range(2):
        (task,) = brought(place, submit_area(place, model))
        digests.add(place.catalog.artifact(task.id, "scene").sha256)
    assert len(digests) == 1


def test_bands_are_found_by_any_of_their_names(stac: StacApi) -> None:
    source = described(stac, assets={"B04": "R10m", "tcr": "visual#2"})
    assert source.asset_of("red") == source.asset_of("b04") == AssetBand("R10m")
    assert source.asset_of("TCR") == AssetBand("visual", 2)
    assert source.asset_of("nir") == AssetBand("nir")
    assert source.asset_of("green") is None


def test_what_is_masked_by_is_never_interpolated_whatever_it_is_called(
    place: Installation, model: ModelRecord, stac: StacApi
) -> None:
    plain = described(stac, assets={"clouds": "scl"})
    plain = plain.model_copy(update={"cloud_masking": None, "bands": plain.bands[:2]})
    settings = place.settings.model_copy(update={"stac": (plain,)})
    codes = np.random.default_rng(3).choice([4, 8, 11], (300, 300)).astype(np.uint8)
    item = stac.granule("a", f"{DAY}T10:00:00Z", bands(pixels(seed=1)))
    coarse = stac.granule("b", f"{DAY}T10:00:00Z", {"scl": codes}, resolution=20.0)
    item["assets"]["scl"] = coarse["assets"]["scl"]
    stac.items.remove(coarse)
    masking = {"band": "Clouds", "encoding": "sentinel2_scl", "kinds": ["cloud"]}
    described_so = Installation(settings, place.catalog, place.storage)
    (task,) = brought(described_so, submit_area(described_so, model, masking=masking))
    with scene_of(place, task) as scene:
        assert set(np.unique(scene.read(3))) == {4, 8, 11}


def test_names_of_items_that_no_database_can_hold_are_passed_over(
    place: Installation, model: ModelRecord, stac: StacApi
) -> None:
    stac.granule("bad", f"{DAY}T10:00:00Z", bands(pixels(seed=1)), cloud=1)["id"] = "a\0b"
    odd = stac.granule("odd", f"{DAY}T10:00:00Z", bands(pixels(seed=1)), cloud=1)
    odd["assets"]["nir"]["type"] = "text/\0html"
    stac.granule("good", f"{DAY}T10:00:00Z", bands(pixels(seed=2)), cloud=2)
    request = submit_area(place, model)
    (task,) = brought(place, request)
    assert place.catalog.artifact(task.id, "scene").metadata["granules"] == ["good"]
    (note,) = place.catalog.request(request).estimate["missing"]
    assert note.isprintable()
