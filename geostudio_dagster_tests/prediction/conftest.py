"""What most calls of ``geostudio-dagster predict`` are given."""

from __future__ import annotations

from pathlib import Path

import pytest

from geostudio_dagster_tests.conftest import write_scene


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return write_scene(tmp_path / "in", "scene.tif", size=600)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where outputs go; nothing else may be left in it."""
    path = tmp_path / "out"
    path.mkdir()
    return path
