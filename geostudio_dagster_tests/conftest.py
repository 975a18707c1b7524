"""What several test modules share: an installation of its own, scenes, a model, a file server."""

from __future__ import annotations

import functools
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from geostudio_dagster.catalog import Catalog, ModelRecord
from geostudio_dagster.demo.model import demo_bundle
from geostudio_dagster.installation import Installation
from geostudio_dagster.models.registration import register_bundle
from geostudio_dagster.settings import FetchSettings, Settings, ShardSettings

SHARED = Path(__file__).resolve().parents[2] / "shared"
IN_CI = os.environ.get("CI") == "true"
# What another kind of machine has nothing to show for; all else must run in CI.
OF_THE_MACHINE = (
    "it knows the system calls of",
    "only root can become another user",
    "torchvision fits this torch",
)
# Settings of somebody's installation, cloud accounts, proxies, certificates, and a terminal's
# width and colours: what a test sees must not depend on who runs it.
_FOREIGN = ("GEOSTUDIO_", "DAGSTER_", "AWS_")
_FOREIGN_NAMES = {
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "PY_COLORS"),
    *("TTY_COMPATIBLE", "TTY_INTERACTIVE", "GITHUB_ACTIONS"),
}

MakeScene = Callable[..., Path]

for _name in list(os.environ):
    if _name.upper() in _FOREIGN_NAMES or (
        _name.startswith(_FOREIGN) and not _name.startswith("GEOSTUDIO_TEST_")
    ):
        del os.environ[_name]
os.umask(0o022)

if not IN_CI:  # where hypothesis has a profile of its own, which repeats itself
    # How long an example takes depends on the machine and on its neighbours.
    slow = [hypothesis.HealthCheck.too_slow]
    hypothesis.settings.register_profile(
        "here", deadline=None, suppress_health_check=slow, print_blob=True
    )
    hypothesis.settings.load_profile("here")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Iterator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a test that is left out has failed: whatever it needs must be there."""
    report: pytest.TestReport = yield
    if IN_CI and report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if not reason.startswith(OF_THE_MACHINE):
            report.outcome = "failed"
            report.longrepr = f"This test must run in CI, but was skipped: {reason}"
    return report


def shared_or_skip(relative: str) -> Path:
    """A file of the reference data."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"the reference data is not here: {path}")
    return path


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    """What a test or an import sets for torch in this process holds for that test alone.

    Importing terratorch lowers the precision of matrix products; the tests that come later in
    this process would compare with less exact numbers.
    """
    _reset_torch()
    yield
    _reset_torch()


def _reset_torch() -> None:
    if torch := sys.modules.get("torch"):
        torch.set_float32_matmul_precision("highest")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of an installation below ``tmp_path``; the environment says the same."""
    monkeypatch.setenv("GEOSTUDIO_DATA_FOLDER", str(tmp_path / "data"))
    monkeypatch.setenv("GEOSTUDIO_FETCH__ALLOWED_HOSTS", '["127.0.0.1"]')
    monkeypatch.setenv("GEOSTUDIO_FETCH__ATTEMPTS", "1")
    monkeypatch.setenv("GEOSTUDIO_SHARDS__RETRY_DELAY_S", "0")
    return Settings(
        data_folder=tmp_path / "data",
        fetch=FetchSettings(allowed_hosts=("127.0.0.1",), attempts=1),
        shards=ShardSettings(retry_delay_s=0),
    )


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite catalog without rows, to be copied, since migrating takes its time."""
    path = tmp_path_factory.mktemp("sqlite") / "catalog.db"
    catalog = Catalog.open(f"sqlite:///{path}")
    catalog.migrate()
    catalog.close()
    return path


@pytest.fixture
def installation(settings: Settings, sqlite_template: Path) -> Iterator[Installation]:
    """An empty installation."""
    catalog = settings.data_folder / "catalog.db"
    if settings.catalog_url == f"sqlite:///{catalog}" and not catalog.exists():
        settings.data_folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(sqlite_template, catalog)
    with Installation.open(settings) as opened:
        yield opened


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model's bundle, made once per test process."""
    return demo_bundle(tmp_path_factory.mktemp("bundles") / "land-cover").folder


@pytest.fixture
def model(installation: Installation, bundle_folder: Path) -> ModelRecord:
    """The demo model, registered."""
    return register_bundle(installation, bundle_folder, owner="tests")


@pytest.fixture
def make_scene(settings: Settings) -> MakeScene:
    """Writes small scenes into the installation's scene folder."""
    return functools.partial(write_scene, settings.data_folder / "scenes")


def write_scene(
    folder: Path,
    name: str,
    *,
    size: int = 300,
    bands: tuple[str, ...] = ("B02", "B03", "B04", "B08"),
    seed: int = 1,
    nodata: int = 0,
) -> Path:
    """A GeoTIFF of smooth reflectances (uint16, x 10^4) with a nodata corner, UTM 33N, 10 m."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / max(size, 1)
    pixels = np.empty((len(bands), size, size), np.uint16)
    for place in range(len(bands)):
        phase = rng.uniform(0, 6.28, 3)
        wave = np.sin(5 * x + phase[0]) + np.sin(7 * y + phase[1]) + np.sin(9 * x * y + phase[2])
        pixels[place] = (1500 + 450 * wave + rng.normal(0, 20, (size, size))).clip(1, 10_000)
    corner = max(size // 10, 1)
    pixels[:, :corner, :corner] = nodata
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=size,
        height=size,
        count=len(bands),
        dtype="uint16",
        crs="EPSG:32633",
        transform=from_origin(500_000 + 4000 * seed, 5_300_000, 10, 10),
        nodata=nodata,
        tiled=True,
        blockxsize=256,
        blockysize=256,
        compress="deflate",
    ) as dataset:
        dataset.write(pixels)
        for index, band in enumerate(bands, start=1):
            dataset.set_band_description(index, band)
    return path


@pytest.fixture
def serve() -> Iterator[Callable[[Path], str]]:
    """Serves folders over HTTP on loopback; returns the base address of each."""
    servers: list[ThreadingHTTPServer] = []

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Keep the test output clean."""

    def start(folder: Path) -> str:
        handler = functools.partial(Quiet, directory=str(folder))
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()


@pytest.fixture
def bucket(s3_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty bucket, ``predictions``, of an S3 server of its own."""
    import boto3  # takes a while, and few tests need it

    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3_port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    place = boto3.resource("s3").Bucket("predictions")
    place.create()
    yield place
    place.objects.delete()
    place.delete()
