"""Publishing twice at once, and mosaics of scenes that come one after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import rasterio
from dagster import DagsterInstance

from geostudio_dagster.catalog import ModelRecord
from geostudio_dagster.errors import LeaseLost
from geostudio_dagster.installation import Installation
from geostudio_dagster.pipeline import layers
from geostudio_dagster.pipeline.plans import plan_request
from geostudio_dagster.planning.admission import admit
from geostudio_dagster_tests.conftest import MakeScene
from geostudio_dagster_tests.driving import Driver


@pytest.fixture
def driver(installation: Installation) -> Iterator[Driver]:
    with DagsterInstance.ephemeral() as instance:
        yield Driver(installation, instance)


def test_a_publication_that_was_taken_over_leaves_the_layers_alone(
    installation: Installation,
    model: ModelRecord,
    make_scene: MakeScene,
    driver: Driver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    document = {
        "model": model.name,
        "spatial_domain": {"urls": [str(make_scene("s.tif", size=64))]},
    }
    request = admit(document, installation.catalog, installation.settings, owner="tests").id
    assert driver.until_over(request) == "COMPLETED"
    original = layers._publish_layers

    def slow(*args: Any) -> Iterator[Any]:
        drafts = list(original(*args))
        monkeypatch.setattr(layers, "_publish_layers", original)
        layers.publish_request(installation, request, "new")  # while the first one sleeps
        yield from drafts

    monkeypatch.setattr(layers, "_publish_layers", slow)
    with pytest.raises(LeaseLost):
        layers.publish_request(installation, request, "slow")
    kinds = [event.kind for event in installation.catalog.events(request)]
    assert kinds.count("layers_ready") == 2  # the first time, and the new run's


def test_a_mosaic_belongs_to_its_scene_however_many_others_there_are(
    installation: Installation, model: ModelRecord, make_scene: MakeScene, driver: Driver
) -> None:
    late, good = (make_scene(f"s{n}.tif", size=600, seed=n) for n in range(2))
    content = late.read_bytes()
    document = {
        "model": model.name,
        "spatial_domain": {"urls": [str(late), str(good)]},
        "task_size": 512,
    }
    request = admit(document, installation.catalog, installation.settings, owner="tests").id
    plan_request(installation, request)
    late.unlink()
    assert driver.until_over(request) == "COMPLETED_WITH_ERRORS"
    (granule,) = installation.catalog.layers(request)[1].granules
    assert granule["key"].endswith("-scene_1_pred.tif")
    before = installation.catalog.artifact(request, "mosaic-1")

    late.write_bytes(content)
    installation.catalog.retry(request)
    assert driver.until_over(request) == "COMPLETED"
    keys = [granule["key"] for granule in installation.catalog.layers(request)[1].granules]
    assert [key.rpartition("-")[2] for key in keys] == ["scene_0_pred.tif", "scene_1_pred.tif"]
    assert installation.catalog.artifact(request, "mosaic-1") == before


def test_a_mosaic_tells_only_what_is_true_of_all_its_parts(
    installation: Installation, model: ModelRecord, make_scene: MakeScene, driver: Driver
) -> None:
    catalog = installation.catalog
    document = {
        "model": model.name,
        "spatial_domain": {"urls": [str(make_scene("s.tif", size=600))]},
        "task_size": 512,
    }
    request = admit(document, catalog, installation.settings, owner="tests").id
    assert driver.until_over(request) == "COMPLETED"
    part = catalog.artifact(f"{request}-task_0_0", "prediction")
    with rasterio.open(installation.path_of(part), "r+", IGNORE_COG_LAYOUT_BREAK="YES") as file:
        file.update_tags(GEOSTUDIO_DEVICE="cuda:0")  # where this part alone was predicted
    catalog.put_artifacts([dataclasses.replace(part, sha256="0" * 64)])
    layers.publish_request(installation, request, "again")
    mosaic = catalog.artifact(request, "mosaic-0")
    assert mosaic.metadata["shape"] == [1, 600, 600]
    with rasterio.open(installation.path_of(mosaic)) as file:
        assert file.tags()["GEOSTUDIO_MODEL"] == model.name
        assert not {"GEOSTUDIO_DEVICE", "GEOSTUDIO_TASK"} & file.tags().keys()
