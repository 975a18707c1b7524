"""The housekeeping makes programs that registered models lack; requests give the same bytes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from geostudio_dagster.installation import Installation
from geostudio_dagster.models.cache import MODELS
from geostudio_dagster.models.modules import ProgramRuntime
from geostudio_dagster.models.programs import ProgramFile
from geostudio_dagster.models.registration import register_bundle
from geostudio_dagster.models.runtime import load_runtime
from geostudio_dagster.pipeline.model_programs import make_missing_programs
from geostudio_dagster.settings import HousekeepingSettings
from geostudio_dagster_tests.conftest import MakeScene
from geostudio_dagster_tests.driving import Driver, path_of, submit, tasks_of
from geostudio_dagster_tests.models.tunes import BANDS, CKPT, make_tune


@pytest.fixture(scope="module")
def tune(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tune(tmp_path_factory.mktemp("tunes") / "tune", "segmentation")[0].folder


def test_a_partition_made_again_from_a_program_has_the_same_bytes(
    installation: Installation, make_scene: MakeScene, driver: Driver, tune: Path
) -> None:
    model = register_bundle(installation, tune, owner="tests")
    request = submit(installation, [make_scene("a.tif", size=120, bands=BANDS)], model)
    assert driver.until_over(request) == "COMPLETED"
    (task,) = tasks_of(installation, request)
    prediction = path_of(installation, task.id, "prediction")
    before = prediction.read_bytes()
    assert driver.launch("housekeeping").success
    MODELS.clear()
    bundle = installation.bundle(model)
    kept = load_runtime(bundle, programs=installation.settings.programs)
    assert isinstance(kept.runtime, ProgramRuntime)

    (shard,) = installation.catalog.shards(request)
    assert driver.launch("shard_job", partition=shard.key).success
    assert path_of(installation, task.id, "prediction").read_bytes() == before


def test_each_model_is_tried_once_and_unused_programs_go(
    installation: Installation, driver: Driver, tune: Path, tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(tune, tmp_path / "broken"))
    torch.save({"state_dict": {"model.x": torch.zeros(1)}}, broken / CKPT)
    model = register_bundle(installation, broken, owner="tests")
    assert list(make_missing_programs(installation, limit=1)) == ["tune@1"]
    assert list(make_missing_programs(installation, limit=1)) == []
    bundle, programs = installation.bundle(model), installation.settings.programs
    refused = ProgramFile.of(bundle, programs).read()
    assert refused is not None
    assert refused.graph is None
    assert "does not fit the model" in refused.refusal

    old = programs / "of-a-model-that-is-gone.pt"
    old.write_bytes(b"")
    for path in programs.iterdir():
        os.utime(path, (0, 0))
    assert driver.launch("housekeeping").success
    assert list(programs.iterdir()) == [ProgramFile.of(bundle, programs).path]


@pytest.mark.parametrize(
    "changes", [{"convert": False}, {"housekeeping": HousekeepingSettings(program_bytes=1000)}]
)
def test_none_are_made_unless_there_is_the_wish_and_the_room(
    installation: Installation, tune: Path, changes: dict[str, object]
) -> None:
    register_bundle(installation, tune, owner="tests")
    settings = installation.settings.model_copy(update=changes)
    told = Installation(settings, installation.catalog, installation.storage)
    assert list(make_missing_programs(told, limit=1)) == []
    assert not settings.programs.exists()
