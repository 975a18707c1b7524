"""A small scene, and a server that has it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from geostudio_dagster.settings import FetchSettings, Settings
from geostudio_dagster.storage import LocalStorage
from geostudio_dagster_tests.conftest import write_scene
from geostudio_dagster_tests.connectors.scene_server import SceneServer, serving


@pytest.fixture
def fetch() -> FetchSettings:
    """Loopback allowed by name; no answer is too late but where a test says so."""
    hosts = ("127.0.0.1",)
    return FetchSettings(allowed_hosts=hosts, timeout_s=120, total_timeout_s=240, attempts=3)


@pytest.fixture
def place(tmp_path: Path, fetch: FetchSettings) -> Settings:
    """Settings with a data folder of their own and one more allowed folder."""
    return Settings(
        data_folder=tmp_path / "data", allowed_roots=(tmp_path / "allowed",), fetch=fetch
    )


@pytest.fixture
def storage(place: Settings) -> LocalStorage:
    """Storage below the data folder."""
    return LocalStorage(place.storage_root)


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """A GeoTIFF in the allowed folder."""
    return write_scene(tmp_path / "allowed", "scene_2024-06-30.tif", size=280)


@pytest.fixture
def server(scene: Path) -> Iterator[SceneServer]:
    """Serves the scene's bytes."""
    with serving(scene.read_bytes()) as state:
        yield state
