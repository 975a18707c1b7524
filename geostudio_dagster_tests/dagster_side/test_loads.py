"""A model is loaded once for all that a process does with it."""

from __future__ import annotations

from geostudio_dagster.catalog import ModelRecord
from geostudio_dagster.installation import Installation
from geostudio_dagster.models.cache import MODELS
from geostudio_dagster_tests.conftest import MakeScene
from geostudio_dagster_tests.driving import Driver, submit, tasks_of


def test_all_tasks_of_all_shards_of_a_process_share_one_load(
    driver: Driver, installation: Installation, model: ModelRecord, make_scene: MakeScene
) -> None:
    MODELS.clear()  # of other tests in this process
    before = MODELS.loads
    scenes = [make_scene(f"s{number}.tif", size=64) for number in range(5)]
    request = submit(installation, scenes, model, shard_size=2)
    assert driver.until_over(request) == "COMPLETED"
    assert len({task.shard_key for task in tasks_of(installation, request)}) == 3
    assert MODELS.loads == before + 1
