"""The main job with its catalog in PostgreSQL, as production has it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import rasterio

from geostudio_dagster.catalog import ModelRecord
from geostudio_dagster.errors import Conflict
from geostudio_dagster.installation import Installation
from geostudio_dagster.settings import Settings
from geostudio_dagster_tests.catalog.conftest import new_database
from geostudio_dagster_tests.conftest import MakeScene
from geostudio_dagster_tests.driving import Driver, path_of, submit, tasks_of


@pytest.fixture
def settings(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """The usual settings, with the catalog in a new database."""
    with new_database() as url:
        monkeypatch.setenv("GEOSTUDIO_DATABASE_URL", url)
        yield settings.model_copy(update={"database_url": url})


def test_scenes_end_as_a_layer_and_the_broken_one_is_retried(
    installation: Installation, model: ModelRecord, make_scene: MakeScene, driver: Driver
) -> None:
    assert installation.settings.catalog_url.startswith("postgresql")
    whole = make_scene("a_2024-06-30.tif", size=600)
    broken = make_scene("b.tif", size=64, bands=("B02", "B03"))
    request = submit(installation, [whole, broken], model, name="Δέλτα", task_size=512)
    assert driver.until_over(request) == "COMPLETED_WITH_ERRORS"
    assert not (installation.settings.data_folder / "catalog.db").exists()
    states = {task.url: str(task.status) for task in tasks_of(installation, request)}
    assert states == {str(whole): "FINISHED", str(broken): "FAILED"}

    make_scene("b.tif", size=64, seed=2)
    assert installation.catalog.retry(request) == 1
    assert driver.until_over(request) == "COMPLETED"
    layers = {layer.name: layer for layer in installation.catalog.layers(request)}
    assert layers["input_rgb"].title == "Input · Δέλτα"
    assert [granule["key"].endswith("_pred.tif") for granule in layers["pred"].granules] == [
        True,
        True,
    ]
    with (
        rasterio.open(whole) as before,
        rasterio.open(path_of(installation, request, "mosaic-0")) as after,
    ):
        assert (after.transform, after.shape) == (before.transform, before.shape)

    speed = installation.catalog.prediction_speed(model.id)
    assert speed is not None and speed > 0
    with pytest.raises(Conflict):
        installation.catalog.cancel(request)
