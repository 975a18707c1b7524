"""Bringing scenes: remote ones once and whole, local ones in place, bad ones with a reason."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from rasterio.control import GroundControlPoint
from rasterio.transform import from_origin

from geostudio_dagster.connectors.url import bring, scene_key, verify_unchanged
from geostudio_dagster.demo.model import demo_bundle
from geostudio_dagster.errors import TaskError
from geostudio_dagster.models.bundle import BundleManifest
from geostudio_dagster.settings import Settings
from geostudio_dagster.storage import LocalStorage, sha256_of
from geostudio_dagster_tests.conftest import shared_or_skip, write_scene
from geostudio_dagster_tests.connectors.scene_server import SceneServer


@pytest.fixture(scope="module")
def manifest(bundle_folder: Path) -> BundleManifest:
    """The demo model's: B02, B03, B04, B08."""
    return demo_bundle(bundle_folder).manifest


def leftovers(place: Settings) -> list[str]:
    scratch = place.data_folder / "scratch"
    return sorted(path.name for path in scratch.rglob("*")) if scratch.exists() else []


def test_a_remote_scene_is_brought_once(
    server: SceneServer, place: Settings, storage: LocalStorage, manifest: BundleManifest
) -> None:
    url = server.url("/file") + "?token=secret"
    first = bring(url, settings=place, storage=storage, request_id="r1", manifest=manifest)
    again = bring(url, settings=place, storage=storage, request_id="r1", manifest=manifest)
    assert again == first
    assert server.gets("/file") == 1
    assert first.path.read_bytes() == server.content
    assert first.key == scene_key("r1", url)
    assert first.path == storage.path(first.key)
    assert not first.external
    assert first.size == len(server.content)
    assert first.sha256 == hashlib.sha256(server.content).hexdigest()
    assert (first.header.width, first.header.height) == (280, 280)
    assert first.header.bands == ("B02", "B03", "B04", "B08")
    assert first.url == server.url("/file")
    assert "secret" not in str(first.metadata)
    assert leftovers(place) == []


def test_another_request_has_its_own_copy(
    server: SceneServer, place: Settings, storage: LocalStorage
) -> None:
    url = server.url("/file")
    keys = {
        bring(url, settings=place, storage=storage, request_id=name).key for name in ("r1", "r2")
    }
    assert len(keys) == 2


def test_a_lost_receipt_is_written_again(
    server: SceneServer, place: Settings, storage: LocalStorage
) -> None:
    url = server.url("/file")
    first = bring(url, settings=place, storage=storage, request_id="r1")
    receipt = storage.path(f"{first.key}.json")
    before = receipt.read_bytes()
    receipt.unlink()
    assert bring(url, settings=place, storage=storage, request_id="r1") == first
    assert receipt.read_bytes() == before


def test_many_threads_download_once(
    server: SceneServer, place: Settings, storage: LocalStorage
) -> None:
    def one(_: int) -> str | None:
        scene = bring(server.url("/file"), settings=place, storage=storage, request_id="r1")
        return scene.sha256

    with ThreadPoolExecutor(8) as pool:
        digests = set(pool.map(one, range(8)))
    assert digests == {hashlib.sha256(server.content).hexdigest()}
    assert server.gets("/file") == 1
    assert leftovers(place) == []


def test_processes_download_once(server: SceneServer, place: Settings) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from geostudio_dagster.connectors.url import bring\n"
        "from geostudio_dagster.settings import FetchSettings, Settings\n"
        "from geostudio_dagster.storage import LocalStorage\n"
        "place = Settings(data_folder=Path(sys.argv[1]),"
        " fetch=FetchSettings(allowed_hosts=('127.0.0.1',)))\n"
        "print(bring(sys.argv[2], settings=place, storage=LocalStorage(place.storage_root),"
        " request_id='r1').sha256)\n"
    )
    command = [sys.executable, "-c", code, str(place.data_folder), server.url("/file")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    digests = {process.communicate(timeout=240)[0].strip() for process in running}
    assert digests == {hashlib.sha256(server.content).hexdigest()}
    assert server.gets("/file") == 1


def test_an_interrupted_download_is_continued_by_the_next_try(
    server: SceneServer, place: Settings, storage: LocalStorage
) -> None:
    once = place.model_copy(update={"fetch": place.fetch.model_copy(update={"attempts": 1})})
    with pytest.raises(TaskError) as error:
        bring(server.url("/broken"), settings=once, storage=storage, request_id="r1")
    assert error.value.retryable
    assert "scene.tif" in leftovers(place)
    brought = bring(server.url("/broken"), settings=once, storage=storage, request_id="r1")
    assert brought.path.read_bytes() == server.content
    assert server.asked[-1][1]["range"].startswith("bytes=")
    assert leftovers(place) == []


def test_what_a_process_killed_after_its_commit_left_goes(
    server: SceneServer, place: Settings, storage: LocalStorage
) -> None:
    url = server.url("/file")
    bring(url, settings=place, storage=storage, request_id="r1")
    digest = hashlib.sha256(url.encode()).hexdigest()[:24]
    left = place.data_folder / "scratch" / f"fetch-r1-{digest}"
    left.mkdir(parents=True)
    (left / "lock").touch()
    bring(url, settings=place, storage=storage, request_id="r1")
    assert leftovers(place) == []


def test_a_page_instead_of_a_scene_leaves_nothing(
    server: SceneServer, place: Settings, storage: LocalStorage
) -> None:
    with pytest.raises(TaskError, match=r"/web-page is not a GeoTIFF") as error:
        bring(server.url("/web-page"), settings=place, storage=storage, request_id="r1")
    assert (error.value.code, error.value.retryable) == ("not_a_raster", False)
    assert leftovers(place) == []
    assert not (place.storage_root / "r1").exists()


def test_a_full_disk_may_be_tried_again(
    server: SceneServer, place: Settings, storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(TaskError, match="No space left") as error:
            bring(server.url("/file"), settings=place, storage=storage, request_id="r1")
    assert (error.value.code, error.value.retryable) == ("no_space", True)
    brought = bring(server.url("/file"), settings=place, storage=storage, request_id="r1")
    assert brought.path.read_bytes() == server.content
    assert leftovers(place) == []


def test_a_local_scene_is_read_in_place(
    scene: Path, place: Settings, storage: LocalStorage, manifest: BundleManifest
) -> None:
    brought = bring(
        scene.as_uri(),
        settings=place,
        storage=storage,
        request_id="r1",
        manifest=manifest,
        planned_size=(280, 280),
    )
    status = scene.stat()
    assert brought.path == scene
    assert brought.external
    assert (brought.key, brought.sha256) == (None, None)
    assert (brought.size, brought.modified_ns) == (status.st_size, status.st_mtime_ns)
    assert brought.uri == scene.as_uri()
    assert brought.metadata["transform"] == [10.0, 0.0, 504_000.0, 0.0, -10.0, 5_300_000.0]
    assert not place.storage_root.exists()


@pytest.mark.parametrize(
    ("url", "code"),
    [("/etc/passwd", "outside_roots"), ("ftp://example.org/a.tif", "forbidden_address")],
)
def test_addresses_are_checked_again_when_the_work_begins(
    url: str, code: str, place: Settings, storage: LocalStorage
) -> None:
    with pytest.raises(TaskError) as error:
        bring(url, settings=place, storage=storage, request_id="r1")
    assert error.value.code == code


def test_a_missing_local_scene(scene: Path, place: Settings, storage: LocalStorage) -> None:
    for path in (scene.with_name("none.tif"), scene.parent):
        with pytest.raises(TaskError, match="is not a file here") as error:
            bring(str(path), settings=place, storage=storage, request_id="r1")
        assert error.value.code == "not_found"


def test_a_scene_of_another_size_than_planned(
    scene: Path, place: Settings, storage: LocalStorage
) -> None:
    with pytest.raises(TaskError, match="280 x 280 pixels, but was 300 x 280") as error:
        bring(str(scene), settings=place, storage=storage, request_id="r", planned_size=(300, 280))
    assert error.value.code == "changed"


def test_a_file_that_changes_while_the_request_runs(scene: Path) -> None:
    status = scene.stat()
    verify_unchanged(scene, status.st_size, status.st_mtime_ns)
    os.utime(scene, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with pytest.raises(TaskError, match="was changed") as error:
        verify_unchanged(scene, status.st_size, status.st_mtime_ns)
    assert error.value.code == "changed"
    scene.unlink()
    with pytest.raises(TaskError, match="no longer there"):
        verify_unchanged(scene, status.st_size, status.st_mtime_ns)


# What is wrong with a file, and what is said of it


def refusal(path: Path, place: Settings, manifest: BundleManifest | None = None) -> TaskError:
    with pytest.raises(TaskError) as error:
        bring(
            str(path),
            settings=place,
            storage=LocalStorage(place.storage_root),
            request_id="r1",
            manifest=manifest,
        )
    assert str(path) in str(error.value)
    assert str(error.value).endswith(".")
    assert not error.value.retryable
    return error.value


def tiff(path: Path, **profile: object) -> Path:
    whole = {
        "driver": "GTiff", "width": 64, "height": 48, "count": 1, "dtype": "uint8",
        "crs": "EPSG:32633", "transform": from_origin(500_000, 5_300_000, 10, 10), **profile,
    }  # fmt: skip
    with rasterio.open(path, "w", **whole) as file:
        file.write(np.ones((int(str(whole["count"])), 48, 64), whole["dtype"]))
    return path


@pytest.mark.parametrize(
    "content",
    [b"", b"II*\0", b"\x89PNG\r\n", b"<html>", hashlib.shake_128(b"noise").digest(500)],
    ids=["empty", "header", "png", "page", "noise"],
)
def test_not_a_tiff(content: bytes, scene: Path, place: Settings) -> None:
    path = scene.with_name("other.tif")
    path.write_bytes(content)
    assert refusal(path, place).code == "not_a_raster"


def test_other_formats_and_vrts_are_not_opened(
    scene: Path, place: Settings, tmp_path: Path
) -> None:
    secret = tiff(tmp_path / "secret.tif")
    vrt = scene.with_name("outside.tif")  # a VRT is known by its content, whatever its name
    with rasterio.open(secret) as source:
        rasterio.shutil.copy(source, vrt, driver="VRT")
    assert b"secret.tif" in vrt.read_bytes()
    assert refusal(vrt, place).code == "not_a_raster"
    png = scene.with_name("picture.png")
    with rasterio.open(png, "w", driver="PNG", width=8, height=8, count=1, dtype="uint8") as file:
        file.write(np.ones((1, 8, 8), "uint8"))
    assert refusal(png, place).code == "not_a_raster"


def as_cog(scene: Path) -> Path:
    """The same scene with its directory at the beginning."""
    cog = scene.with_name("cog.tif")
    rasterio.shutil.copy(scene, cog, driver="COG", BLOCKSIZE=128)
    return cog


def test_a_file_cut_short(scene: Path, place: Settings) -> None:
    cog = as_cog(scene)
    for path in (cog, scene):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) * 3 // 4])
        error = refusal(path, place)
        assert error.code == "not_a_raster"
        assert "cut short" in str(error)


def test_no_georeference(scene: Path, place: Settings) -> None:
    no_crs = tiff(scene.with_name("no_crs.tif"), crs=None)
    assert "no coordinate reference system" in str(refusal(no_crs, place))
    no_place = tiff(scene.with_name("no_place.tif"), transform=rasterio.Affine.identity())
    error = refusal(no_place, place)
    assert error.code == "not_georeferenced"
    assert "no position" in str(error)


def test_ground_control_points_alone(scene: Path, place: Settings) -> None:
    points = [
        GroundControlPoint(row, col, 10 + col / 1e3, 50 - row / 1e3)
        for row, col in ((0, 0), (0, 64), (48, 0))
    ]
    path = tiff(
        scene.with_name("gcps.tif"),
        crs="EPSG:4326",
        gcps=points,
        transform=rasterio.Affine.identity(),
    )
    error = refusal(path, place)
    assert error.code == "not_georeferenced"
    assert "ground control points" in str(error)


def test_side_files_are_not_read(scene: Path, place: Settings, storage: LocalStorage) -> None:
    bare = tiff(scene.with_name("bare.tif"), crs=None, transform=rasterio.Affine.identity())
    bare.with_name("bare.tif.aux.xml").write_text(
        "<PAMDataset><SRS>EPSG:32633</SRS><GeoTransform>5e5,10,0,5e6,0,-10</GeoTransform>"
        "</PAMDataset>"
    )
    bare.with_suffix(".tfw").write_text("10\n0\n0\n-10\n500000\n5000000\n")
    assert refusal(bare, place).code == "not_georeferenced"


def test_complex_pixels(scene: Path, place: Settings) -> None:
    assert "complex" in str(refusal(tiff(scene.with_name("c.tif"), dtype="complex64"), place))


def test_blocks_too_large_for_memory(scene: Path, place: Settings) -> None:
    path = scene.with_name("strip.tif")
    with rasterio.open(
        path, "w", driver="GTiff", width=40_000, height=40_000, count=1, dtype="uint8",
        crs="EPSG:32633", transform=from_origin(5e5, 5e6, 10, 10), tiled=True,
        blockxsize=40_000, blockysize=40_000, sparse_ok=True, compress="deflate",
    ):  # fmt: skip
        pass
    error = refusal(path, place)
    assert error.code == "too_large"
    assert "512 x 512" in str(error)


def test_too_few_bands(scene: Path, place: Settings, manifest: BundleManifest) -> None:
    path = write_scene(scene.parent, "rgb.tif", size=64, bands=("B02", "B03", "B04"))
    error = refusal(path, place, manifest)
    assert error.code == "too_few_bands"
    assert "B08" in str(error)
    bring(str(path), settings=place, storage=LocalStorage(place.storage_root), request_id="r")


def test_a_remote_scene_is_named_by_its_address(
    scene: Path,
    server: SceneServer,
    place: Settings,
    storage: LocalStorage,
    manifest: BundleManifest,
) -> None:
    path = write_scene(scene.parent, "rgb.tif", size=64, bands=("B02", "B03", "B04"))
    server.content = path.read_bytes()
    with pytest.raises(TaskError, match="has 3 bands") as error:
        bring(
            server.url("/file"),
            settings=place,
            storage=storage,
            request_id="r1",
            manifest=manifest,
        )
    assert str(error.value).startswith(server.url("/file"))
    assert leftovers(place) == []


REFERENCE = {
    "hls_utm14n_10band_224.tif": (224, 224, 10),
    "hls_burnscar_mask_512.tif": (512, 512, 1),
    "s2_l2a_4326_3band.tif": (117, 255, 3),
    "landsat_rgb_utm18n.tif": (791, 718, 3),
    "neon_osbs_029_rgb.tif": (400, 400, 3),
}


@pytest.mark.parametrize("name", sorted(REFERENCE))
def test_real_scenes(name: str, tmp_path: Path) -> None:
    path = shared_or_skip(f"scenes/{name}")
    place = Settings(data_folder=tmp_path, allowed_roots=(path.parent,))
    before = sha256_of(path)
    brought = bring(str(path), settings=place, storage=LocalStorage(tmp_path / "s"), request_id="r")
    header = brought.header
    assert (header.width, header.height, len(header.bands)) == REFERENCE[name]
    assert header.bounds is not None
    assert sha256_of(path) == before
