"""Remote scenes read where they are: the same pixels, few bytes, and one version throughout."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import transform_bounds

from geostudio_dagster.connectors.addresses import RemoteScene, http_url
from geostudio_dagster.connectors.ranges import RangesUnsupportedError, RemoteFile
from geostudio_dagster.errors import TaskError
from geostudio_dagster.models.bundle import BundleManifest
from geostudio_dagster.raster.composite import write_composite
from geostudio_dagster.raster.patches import Box
from geostudio_dagster.raster.regridding import BandInput, Canvas
from geostudio_dagster.raster.scene import Scene
from geostudio_dagster.settings import FetchSettings
from geostudio_dagster_tests.connectors.scene_server import SceneServer
from geostudio_dagster_tests.prediction.builders import write_raster
from geostudio_dagster_tests.raster.test_checksums import MASK, hole, with_mask

MANIFEST = BundleManifest.model_validate(
    {
        "name": "m",
        "runtime": "torchscript",
        "weights": "m.pt",
        "task": "regression",
        "bands": [{"name": name} for name in ("a", "b")],
    }
)
PIXELS = np.random.default_rng(0).integers(1, 60_000, (2, 1500, 1300)).astype(np.uint16)


@pytest.fixture
def large(tmp_path: Path, server: SceneServer) -> SceneServer:
    """The server with a scene of several megabytes."""
    path = write_raster(tmp_path / "l.tif", PIXELS, block=256)
    server.content = path.read_bytes()
    return server


def at(server: SceneServer, path: str = "/file/l.tif?token=secret") -> RemoteScene:
    return RemoteScene(http_url(server.url(path)))


def window(scene: Scene, box: Box) -> np.ndarray:
    pixels = np.empty((2, box.height, box.width), scene.dtype)
    scene.read(box, pixels, np.empty((box.height, box.width), bool))
    return pixels


@pytest.mark.parametrize("path", ["/file/l.tif", "/redirect?to=%2Ffile%2Fl.tif"])
@pytest.mark.parametrize("threads", [1, 3])
def test_pixels_are_those_of_the_file(
    large: SceneServer, fetch: FetchSettings, path: str, threads: int
) -> None:
    with RemoteFile(at(large, path), fetch) as file, Scene(file, MANIFEST, threads) as scene:
        np.testing.assert_array_equal(window(scene, scene.core(None)), PIXELS)
        part = Box(300, 700, 513, 257)
        np.testing.assert_array_equal(window(scene, part), PIXELS[:, 700:957, 300:813])
        scene.check_unchanged()


def test_a_window_costs_its_own_blocks_and_no_more(
    large: SceneServer, fetch: FetchSettings
) -> None:
    with RemoteFile(at(large), fetch) as file, Scene(file, MANIFEST) as scene:
        window(scene, Box(256, 256, 256, 256))
    spans = [headers["range"].removeprefix("bytes=").split("-") for _, headers in large.asked]
    total = sum(int(last) - int(first) + 1 for first, last in spans)
    # The header's chunk, and two blocks of 128 KiB, each by chunks at worst.
    assert total < 2 * 1024**2 < len(large.content)


@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("threads", [1, 2])
def test_checking_the_blocks_fetches_nothing_twice(
    *, server: SceneServer, fetch: FetchSettings, tmp_path: Path, interleave: str, threads: int
) -> None:
    # Of more bytes than the cache has.
    pixels = np.random.default_rng(0).integers(1, 60_000, (2, 1500, 2600)).astype(np.uint16)
    path = write_raster(tmp_path / "l.tif", pixels, block=256, interleave=interleave)
    server.content = path.read_bytes()
    assert len(server.content) > 12 * 1024**2
    with RemoteFile(at(server), fetch) as file, Scene(file, MANIFEST, threads) as scene:
        np.testing.assert_array_equal(window(scene, scene.core(None)), pixels)
    spans = [headers["range"].removeprefix("bytes=").split("-") for _, headers in server.asked]
    total = sum(int(last) - int(first) + 1 for first, last in spans)
    assert total < len(server.content) + 2 * 256 * 1024  # and the header's chunk


@pytest.mark.parametrize("masked", [False, True])
def test_of_a_cog_each_block_is_fetched_once(
    *, server: SceneServer, fetch: FetchSettings, tmp_path: Path, masked: bool
) -> None:
    # GDAL asks for some bytes beside its blocks, too, and for those of its mask between them.
    rough, path = write_raster(tmp_path / "r.tif", PIXELS), tmp_path / "c.tif"
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(rough, "r+") as file:
        if masked:
            file.write_mask(PIXELS[0] > 20_000)
        rasterio.shutil.copy(file, path, driver="COG", blocksize=256, compress="deflate")
    server.content = path.read_bytes()
    with RemoteFile(at(server), fetch) as file, Scene(file, MANIFEST) as scene:
        window(scene, Box(300, 300, 600, 600))
    spans = [headers["range"].removeprefix("bytes=").split("-") for _, headers in server.asked]
    total = sum(int(last) - int(first) + 1 for first, last in spans)
    assert total < 9 * 256**2 * 2 * 2 + 2 * 256 * 1024  # and the header's chunk


def test_a_hole_in_a_remote_mask_is_told(
    server: SceneServer, fetch: FetchSettings, tmp_path: Path
) -> None:
    path = with_mask(tmp_path / "m.tif", driver="COG", blocksize=64, compress="deflate")
    server.content = path.read_bytes()
    with RemoteFile(at(server), fetch) as file, Scene(file, MANIFEST) as scene:
        box = scene.core(None)
        pixels, valid = np.empty((2, *MASK.shape), np.uint16), np.empty(MASK.shape, bool)
        scene.read(box, pixels, valid)
        np.testing.assert_array_equal(valid, MASK)
    server.content = hole(path, 1, 2, page=2).read_bytes()
    with (
        RemoteFile(at(server), fetch) as file,
        Scene(file, MANIFEST) as scene,
        pytest.raises(TaskError, match="at column 128, row 64 of the mask is damaged") as caught,
    ):
        scene.read(box, pixels, valid)
    assert caught.value.code == "corrupt"


def test_of_a_granule_each_block_is_fetched_once_and_a_hole_in_one_is_told(
    server: SceneServer, fetch: FetchSettings, tmp_path: Path
) -> None:
    path = write_raster(tmp_path / "g.tif", PIXELS, driver="COG", blocksize=256)
    server.content = path.read_bytes()
    zone = CRS.from_epsg(32632)  # of the neighbours
    west, south, _, _ = transform_bounds("EPSG:32633", zone, 500_000, 5_285_000, 513_000, 5_300_000)
    canvas = Canvas(zone, Affine(10, 0, west, 0, -10, south + 15_000), 1300, 1500)

    def compose() -> None:
        with RemoteFile(at(server), fetch) as file:
            bands = [BandInput(lambda: file, 1)]
            write_composite([bands], ["a"], canvas, Box(0, 0, 512, 512), tmp_path / "c.tif")

    compose()
    spans = [headers["range"].removeprefix("bytes=").split("-") for _, headers in server.asked]
    total = sum(int(last) - int(first) + 1 for first, last in spans)
    assert total < 9 * 256**2 * 2 * 2 + 2 * 256 * 1024  # and the header's chunk
    hole(path, 1, 1)
    server.content = path.read_bytes()
    with pytest.raises(TaskError, match="at column 256, row 256 is damaged") as caught:
        compose()
    assert caught.value.code == "corrupt"
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("box", [Box(0, 0, 1300, 1500), Box(300, 300, 10, 10)])
def test_a_hole_in_a_remote_block_is_told(
    large: SceneServer, fetch: FetchSettings, tmp_path: Path, box: Box
) -> None:
    pixels = 3000 + np.cumsum(np.random.default_rng(1).integers(-20, 21, PIXELS.shape), axis=2)
    path = tmp_path / "h.tif"
    write_raster(path, pixels.astype(np.uint16), block=256, predictor=2, interleave="pixel")
    with rasterio.open(path) as file:
        offset = int(file.get_tag_item("BLOCK_OFFSET_1_1", "TIFF", bidx=1))
    content = bytearray(path.read_bytes())
    content[offset + 9000 : offset + 20_000] = bytes(11_000)
    large.content = bytes(content)
    with (
        RemoteFile(at(large), fetch) as remote,
        Scene(remote, MANIFEST) as scene,
        pytest.raises(TaskError, match="at column 256, row 256 is damaged") as caught,
    ):
        window(scene, box)
    assert caught.value.code == "corrupt"


def test_reading_on_and_on_takes_few_requests(large: SceneServer, fetch: FetchSettings) -> None:
    with RemoteFile(at(large), fetch) as file:
        found = b"".join(file.read_at(offset, 10_000) for offset in range(0, file.size, 10_000))
        assert found == large.content
        assert len(large.asked) <= len(large.content) / (3 * 256 * 1024) + 3
        assert file.read_at(file.size, 10) == b""
        assert file.read_at(file.size - 5, 10) == large.content[-5:]


def test_ranges_come_back_in_the_order_they_were_asked_for(
    large: SceneServer, fetch: FetchSettings
) -> None:
    content = large.content
    end = len(content) - 10
    asked = [(end, 100), (0, 10), (5, 20), (1_000_000, 300_000), (400_000, 1), (1_100_000, 10)]
    with RemoteFile(at(large), fetch) as file:
        found = file.read_ranges([place for place, _ in asked], [size for _, size in asked])
    assert found == [content[offset : offset + size] for offset, size in asked]


@pytest.mark.parametrize("path", ["/plain/l.tif", "/web-page", "/status-416", "/unbelievable"])
def test_servers_without_ranges_are_told(
    large: SceneServer, fetch: FetchSettings, path: str
) -> None:
    with pytest.raises(RangesUnsupportedError):
        RemoteFile(at(large, path), fetch)


def test_servers_that_name_no_version_are_told(large: SceneServer, fetch: FetchSettings) -> None:
    large.etag = ""
    with pytest.raises(RangesUnsupportedError):
        RemoteFile(at(large), fetch)


def test_a_file_that_changes_while_it_is_read_is_noticed(
    large: SceneServer, fetch: FetchSettings
) -> None:
    with RemoteFile(at(large), fetch) as file, Scene(file, MANIFEST) as scene:
        large.etag = '"second"'
        with pytest.raises(TaskError) as caught:
            window(scene, scene.core(None))
    assert (caught.value.code, caught.value.retryable) == ("input_changed", True)
    assert "/file/l.tif changed while it was read" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "code", "words"),
    [
        ("/status-404", "not_found", "does not exist (HTTP 404)"),
        ("/status-403", "forbidden", "may not be read (HTTP 403)"),
        ("/redirect?to=http%3A%2F%2F10.0.0.1%2Fs.tif", "forbidden_address", "10.0.0.1"),
        ("/redirect?to=file%3A%2F%2F%2Fetc%2Fpasswd", "forbidden_address", "redirects to file"),
        ("/loop", "unreachable", "redirects more than 5 times"),
    ],
)
def test_refusals_are_those_of_the_fetcher(
    *, large: SceneServer, fetch: FetchSettings, path: str, code: str, words: str
) -> None:
    with pytest.raises(TaskError) as caught:
        RemoteFile(at(large, path), fetch)
    assert caught.value.code == code
    assert words in str(caught.value)


def test_private_addresses_and_files_beyond_the_limit_are_refused(
    large: SceneServer, fetch: FetchSettings
) -> None:
    with pytest.raises(TaskError, match="not a public address"):
        RemoteFile(at(large), fetch.model_copy(update={"allowed_hosts": ()}))
    assert large.asked == []
    with pytest.raises(TaskError) as caught:
        RemoteFile(at(large), fetch.model_copy(update={"max_bytes": 1_000_000}))
    assert caught.value.code == "too_large"


def test_a_server_that_goes_away_is_a_retryable_error_that_names_the_address(
    large: SceneServer, fetch: FetchSettings
) -> None:
    large.seen["/busy"] = 2  # from now on it has the file
    with RemoteFile(at(large, "/busy"), fetch) as file, Scene(file, MANIFEST) as scene:
        large.seen["/busy"] = -100  # it is busy for longer than anybody tries
        with pytest.raises(TaskError) as caught:
            window(scene, scene.core(None))
    assert (caught.value.code, caught.value.retryable) == ("unreachable", True)
    assert "/busy answered HTTP 503" in str(caught.value)


def test_what_is_no_geotiff_is_told(large: SceneServer, fetch: FetchSettings) -> None:
    large.content = b"no raster at all" * 10
    with RemoteFile(at(large), fetch) as file, pytest.raises(TaskError) as caught:
        Scene(file, MANIFEST)
    assert caught.value.code == "not_a_raster"
    assert "l.tif can't be opened as a GeoTIFF" in str(caught.value)


def test_nothing_beside_the_file_is_seen(large: SceneServer, fetch: FetchSettings) -> None:
    with RemoteFile(at(large), fetch) as file:
        with rasterio.open(os.fspath(file), opener=file.opener) as opened:
            assert len(opened.files) == 1
        with pytest.raises(FileNotFoundError):
            file.opener.open("l.tif.ovr")
        with pytest.raises(FileNotFoundError):
            file.opener.open("l.tif", "w")
