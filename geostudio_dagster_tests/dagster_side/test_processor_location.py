"""The processors' own code location: what it shows, what breaks it not, runs of one alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg
import numpy as np
import pytest
import rasterio
from dagster import DagsterInstance
from dagster._core.definitions.definitions_load_context import (
    DefinitionsLoadContext,
    DefinitionsLoadType,
)
from sqlalchemy import text

from geostudio_dagster.catalog import ModelRecord, ProcessorRecord
from geostudio_dagster.defs.processor_assets import processor_key, processor_name
from geostudio_dagster.installation import Installation
from geostudio_dagster.processor_location import defs
from geostudio_dagster.storage import sha256_of
from geostudio_dagster_tests.conftest import MakeScene
from geostudio_dagster_tests.driving import Driver, path_of, submit, tasks_of
from geostudio_dagster_tests.scripts import COUNT, DROP, FAIL, upload

SCHEMA = {
    "type": "object",
    "properties": {
        "drop": {"type": "integer", "description": "The class to take away.", "minimum": 0},
        "method": {"type": "string"},
    },
    "required": ["drop"],
}


def location() -> dg.Definitions:
    """The definitions as a code server loads them when it starts."""
    context = DefinitionsLoadContext(load_type=DefinitionsLoadType.INITIALIZATION)
    with DefinitionsLoadContext.scoped(context):
        return defs()


def keys(definitions: dg.Definitions) -> set[dg.AssetKey]:
    return set(definitions.get_repository_def().asset_graph.get_all_asset_keys())


def test_every_offered_processor_is_an_asset_of_its_own(installation: Installation) -> None:
    assert keys(location()) == set()
    first = upload(installation, "drop-class", DROP, description="Drops a class.")
    upload(installation, "drop-class", COUNT, parameters_schema=SCHEMA, gpu=True)
    old = upload(installation, "old", DROP)
    installation.catalog.deprecate_processor(old.id)
    gone = upload(installation, "gone", DROP)
    installation.catalog.delete_processor(gone.id)

    definitions = location()
    key = processor_key(first.owner, "drop-class")
    assert keys(definitions) == {key}
    node = definitions.get_repository_def().asset_graph.get(key)
    newest = installation.catalog.processor("drop-class")
    assert node.code_version == f"2-{newest.sha256[:12]}"
    assert node.owners == ["ada@example.org"]
    assert "The script drop-class of ada@example.org." in str(node.description)
    metadata = {name: getattr(value, "value", value) for name, value in node.metadata.items()}
    assert (metadata["version"], metadata["sha256"]) == (2, newest.sha256)
    assert (metadata["owner"], metadata["gpu"]) == ("ada@example.org", True)

    config = definitions.resolve_assets_def(key).op.config_schema.config_type.fields
    assert set(config) == {"task", "parameters"}
    fields = config["parameters"].config_type.fields
    assert fields["drop"].is_required
    assert fields["drop"].description == "The class to take away."
    assert fields["drop"].config_type.given_name == "Int"
    assert not fields["method"].is_required


def test_names_never_clash(installation: Installation) -> None:
    names = ["a-b", "a_b", "a.b", "a b", "ä b", "über", "1", "x" * 100, "✓"]
    for owner in ("ada@example.org", "ada_example@org.example"):
        for name in names:
            upload(installation, name, DROP, owner=owner)
    found = keys(location())
    assert len(found) == 2 * len(names)
    assert processor_name("a", "bc") != processor_name("ab", "c")


@pytest.mark.parametrize(
    "damage",
    [
        "parameters = '7'",
        "parameters_schema = '{\"properties\": [1]}'",
        "name = ''",
        "sha256 = ''",
        "limits = '\"much\"'",
        'parameters = \'{"": 1, "a b": {"c": [null]}, "drop": null}\'',
    ],
)
def test_one_bad_row_never_breaks_the_location(installation: Installation, damage: str) -> None:
    good = upload(installation, "good", COUNT)
    bad = upload(installation, "bad", DROP)
    with installation.catalog._write() as session:
        session.execute(text(f"UPDATE processors SET {damage} WHERE id = '{bad.id}'"))
    assert processor_key(good.owner, "good") in keys(location())


def test_a_catalog_out_of_reach_is_an_empty_location(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(installation, "good", COUNT)
    monkeypatch.setenv("GEOSTUDIO_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    assert keys(location()) == set()


def failure_of(result: dg.ExecuteInProcessResult) -> str:
    (failure,) = (event for event in result.all_events if event.is_step_failure)
    error = failure.step_failure_data.error
    assert error is not None
    return error.to_string()


@contextmanager
def launched(
    processor: ProcessorRecord, instance: DagsterInstance, **config: Any
) -> Iterator[dg.ExecuteInProcessResult]:
    definitions = location()
    name = processor_name(processor.owner, processor.name)
    job = definitions.resolve_implicit_global_asset_job_def()
    yield job.execute_in_process(
        instance=instance,
        asset_selection=[processor_key(processor.owner, processor.name)],
        run_config={"ops": {name: {"config": config}}},
        raise_on_error=False,
    )


def test_a_processor_runs_alone_on_what_a_task_made(
    installation: Installation, model: ModelRecord, make_scene: MakeScene, driver: Driver
) -> None:
    request = submit(installation, [make_scene("a.tif")], model)
    driver.until_over(request)
    (task,) = tasks_of(installation, request)
    archive = sha256_of(path_of(installation, task.id, "archive"))
    drop = upload(installation, "drop-class", DROP, processor_parameters={"drop": 0})

    with launched(drop, driver.instance, task=task.id, parameters={"drop": 1}) as result:
        assert result.success
        role = f"alone/{result.run_id[:8]}/processed.tif"
    artifact = installation.catalog.artifact(task.id, role)
    assert artifact.key.startswith(f"{request}/_runs/{result.run_id}/")
    with rasterio.open(path_of(installation, task.id, "prediction")) as file:
        prediction = file.read(1)
    with rasterio.open(installation.path_of(artifact)) as file:
        np.testing.assert_array_equal(file.read(1), np.where(prediction == 1, 255, prediction))

    event = driver.instance.get_latest_materialization_event(processor_key(drop.owner, drop.name))
    assert event is not None and event.asset_materialization is not None
    metadata = {key: value.value for key, value in event.asset_materialization.metadata.items()}
    assert metadata["task"] == task.id
    assert metadata["printed"]["dropped"] == int((prediction == 1).sum())
    assert metadata["artifacts"] == [role]
    assert metadata["isolation"]

    driver.launch("shard_job", partition=f"{request}/00000", assets=["shard_settled"])
    assert sha256_of(path_of(installation, task.id, "archive")) == archive, "no part of the task"
    scratch = installation.settings.data_folder / "scratch"
    assert [path for path in scratch.rglob("*") if path.is_file()] == []


def test_a_run_alone_fails_with_a_sentence(
    installation: Installation, model: ModelRecord, make_scene: MakeScene, driver: Driver
) -> None:
    request = submit(installation, [make_scene("a.tif")], model)
    driver.until_over(request)
    task = f"{request}-task_0"
    fail = upload(installation, "fail", FAIL)
    drop = upload(installation, "drop-class", DROP, parameters_schema=SCHEMA)
    cases: list[tuple[ProcessorRecord, dict[str, Any], str]] = [
        (fail, {"task": "nothing"}, "There is no task nothing."),
        (fail, {"task": task}, "no cloud band in this scene"),
        (drop, {"task": task, "parameters": {"drop": -1}}, "parameters.drop: -1 is less than"),
    ]
    for processor, config, words in cases:
        with launched(processor, driver.instance, **config) as result:
            assert not result.success
            assert words in failure_of(result)


def test_a_processor_is_registered_from_the_launchpad(
    installation: Installation, driver: Driver
) -> None:
    def register(**config: object) -> dg.ExecuteInProcessResult:
        return driver.launch(
            "register_processor_job", run_config={"ops": {"register_processor": {"config": config}}}
        )

    done = register(name="drop class", text=DROP, metadata={"processor_parameters": {"drop": 1}})
    assert done.success
    record = installation.catalog.processor("drop class")
    assert (record.owner, record.file_name, record.sharable) == ("dagster", "drop_class.py", True)
    inbox = installation.settings.inbox
    inbox.mkdir(parents=True, exist_ok=True)
    (inbox / "count.py").write_text(COUNT)
    assert register(name="count", path=str(inbox / "count.py"), owner="ada@example.org").success
    assert installation.catalog.processor("count").sharable is False
    for config, words in (
        ({"name": "a", "text": "print(1)"}, "no entry point"),
        ({"name": "a", "path": "/etc/passwd"}, "is in no folder that may be read"),
        ({"name": "a"}, "give one of them"),
    ):
        refused = register(**config)
        assert not refused.success
        assert words in failure_of(refused)
