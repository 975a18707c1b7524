"""The housekeeping makes programs that registered models lack; requests give the same bytes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

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
from geostudio_dagster_tests.models.tunes import BANDS, LastFeatures, make_tune, make_with_decoder


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


def test_a_model_that_fails_is_tried_once_a_day_and_unused_programs_go(
    installation: Installation, driver: Driver, tune: Path
) -> None:
    bundle = installation.bundle(register_bundle(installation, tune, owner="tests"))
    programs, whole = installation.settings.programs, bundle.weights_path.read_bytes()
    place = ProgramFile.of(bundle, programs)
    bundle.weights_path.write_bytes(whole[:1000])  # as a disk may give it that is away soon
    assert list(make_missing_programs(installation, limit=1)) == ["tune@1"]
    assert list(make_missing_programs(installation, limit=1)) == []
    assert not place.exists
    a_day_later(programs)
    assert list(make_missing_programs(installation, limit=1)) == ["tune@1"]
    bundle.weights_path.write_bytes(whole)
    assert list(make_missing_programs(installation, limit=1)) == []
    a_day_later(programs)
    assert list(make_missing_programs(installation, limit=1)) == ["tune@1"]
    kept = place.read()
    assert kept is not None
    assert kept.graph is not None
    assert list(programs.iterdir()) == [place.path]

    old = programs / "of-a-model-that-is-gone.pt"
    old.write_bytes(b"")
    for path in programs.iterdir():
        os.utime(path, (0, 0))
    assert driver.launch("housekeeping").success
    assert list(programs.iterdir()) == [place.path]


def a_day_later(programs: Path) -> None:
    for path in programs.iterdir():
        moment = path.stat().st_mtime - 24 * 3600
        os.utime(path, (moment, moment))


class Killing(LastFeatures):
    """A decoder that ends who builds it, once it is wanted."""

    wanted = False

    def __init__(self, embed_dim: list[int]) -> None:
        super().__init__(embed_dim)
        if self.wanted:
            raise KeyboardInterrupt


def test_the_round_after_one_that_was_killed_goes_on_with_the_next_model(
    installation: Installation, tune: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killing = make_with_decoder(tmp_path / "killing", Killing)
    monkeypatch.setattr(Killing, "wanted", True)
    for folder in (killing.folder, tune):
        register_bundle(installation, folder, owner="tests")
    tried: list[str] = []
    for _ in range(2):
        with contextlib.suppress(KeyboardInterrupt):
            tried += make_missing_programs(installation, limit=1)
    (whole,) = installation.settings.programs.glob("*.pt")
    assert tried in (["tune@1"], ["tune@2"])
    assert whole.stat().st_size > 100_000


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
