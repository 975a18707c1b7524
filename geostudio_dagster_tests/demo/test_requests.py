"""The demo's requests: valid, and the same again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from geostudio_dagster.connectors.url import bring
from geostudio_dagster.demo.model import demo_bundle
from geostudio_dagster.demo.requests import demo_model, demo_requests, request_for
from geostudio_dagster.demo.scenes import synthetic_scene
from geostudio_dagster.planning.plan import make_plan
from geostudio_dagster.planning.request import parse_request
from geostudio_dagster.settings import Settings
from geostudio_dagster.storage import LocalStorage


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder after ``make demo`` made its inputs."""
    folder = tmp_path_factory.mktemp("demo")
    documents(folder)
    return folder


def documents(folder: Path) -> list[dict[str, Any]]:
    bundle = demo_bundle(demo_model(folder))
    return demo_requests(folder, bundle.manifest.name, bundle.digest)


def test_the_second_time_nothing_is_made_and_the_ids_are_the_same(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert documents(folder) == documents(folder)
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert after == before
    assert sorted(path.name for path in before) == [
        "bundle.yaml",
        "model.pt",
        "sentinel2_spyndex.tif",
        "synthetic_4096.tif",
    ]


def test_plans_show_tiling_and_shards(folder: Path) -> None:
    settings = Settings(data_folder=folder)
    manifest = demo_bundle(demo_model(folder)).manifest
    counts = []
    for document in documents(folder):
        spec = parse_request(document)
        plan = make_plan(spec, document["id"], manifest, settings, None)
        counts.append((len(plan.tasks), plan.shard_count))
        bring(
            plan.tasks[0].url,
            settings=settings,
            storage=LocalStorage(settings.storage_root),
            request_id=document["id"],
            manifest=manifest,
            planned_size=plan.tasks[0].scene_size,
        )
    assert counts == [(1, 1), (4, 2)]


def test_an_id_follows_from_scene_model_and_options(tmp_path: Path) -> None:
    scene = synthetic_scene(tmp_path / "a.tif", size=64)
    base = request_for(scene, "m", "digest")
    assert request_for(scene, "m", "digest") == base
    others = [
        request_for(scene, "m", "other digest"),
        request_for(scene, "n", "digest"),
        request_for(scene, "m", "digest", task_size=512),
        request_for("https://example.org/a.tif", "m", "digest"),
    ]
    synthetic_scene(scene, size=64, seed=5)
    others.append(request_for(scene, "m", "digest"))
    assert len({request["id"] for request in [base, *others]}) == 6


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, geostudio_dagster.demo.model, geostudio_dagster.demo.requests\n"
        "import geostudio_dagster.planning.plan, geostudio_dagster.planning.admission\n"
        "import geostudio_dagster.postprocess.quicklook, geostudio_dagster.postprocess.statistics\n"
        "heavy = {'torch', 'terratorch', 'spyndex', 'xarray', 'geopandas', 'dagster'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
