"""What Dagster sees when it loads the code location."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys

import dagster as dg
import pytest

from geostudio_dagster.definitions import defs


@pytest.fixture(scope="module")
def definitions() -> dg.Definitions:
    return defs()


def test_loads_without_any_setting_and_without_heavy_modules() -> None:
    """The daemon loads this at every start; torch alone would cost it seconds."""
    program = (
        "import sys, json\n"
        "from geostudio_dagster.definitions import defs\n"
        "d = defs(); d.get_repository_def()\n"
        "heavy = {'torch', 'terratorch', 'torchvision', 'geopandas', 'titiler', 'fastapi'}\n"
        "print(json.dumps(sorted(heavy & set(sys.modules))))\n"
    )
    clean = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("GEOSTUDIO_", "DAGSTER_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", program], env=clean, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_assets_jobs_and_sensors_by_name(definitions: dg.Definitions) -> None:
    repository = definitions.get_repository_def()
    keys = {key.to_user_string() for key in repository.asset_graph.get_all_asset_keys()}
    assert keys == {
        "request_plan",
        "tiles",
        "predictions",
        "postprocessed",
        "processor_outputs",
        "shard_settled",
        "geoserver_layers",
    }
    jobs = {name for name in repository.job_names if not name.startswith("__")}
    assert jobs == {
        "plan_request_job",
        "shard_job",
        "publish_job",
        "register_processor_job",
        "onboard_bundle_job",
        "housekeeping",
    }
    assert {sensor.name for sensor in repository.sensor_defs} == {
        "inbox",
        "request_planner",
        "shard_dispatcher",
        "reconciler",
        "processor_watcher",
        "webhook_deliveries",
        "onboarder",
    }
    assert [schedule.name for schedule in repository.schedule_defs] == ["housekeeping_schedule"]


def test_partitions_and_lineage(definitions: dg.Definitions) -> None:
    graph = definitions.get_repository_def().asset_graph
    names = {
        key.to_user_string(): getattr(graph.get(key).partitions_def, "name", None)
        for key in graph.get_all_asset_keys()
    }
    assert names.pop("request_plan") == "requests"
    assert names.pop("geoserver_layers") == "requests"
    assert set(names.values()) == {"shards"}
    chain = ["tiles", "predictions", "postprocessed", "processor_outputs", "shard_settled"]
    for upstream, downstream in itertools.pairwise(chain):
        assert dg.AssetKey(upstream) in graph.get(dg.AssetKey(downstream)).parent_keys
    assert dg.AssetKey("shard_settled") in graph.get(dg.AssetKey("geoserver_layers")).parent_keys


def test_every_asset_is_described_and_owned(definitions: dg.Definitions) -> None:
    graph = definitions.get_repository_def().asset_graph
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.description, key
        assert node.group_name in {"inference", "requests"}, key
        assert node.owners, key
        assert node.kinds, key
        assert node.code_version, key


def test_predictions_wait_for_the_gpu_pool(definitions: dg.Definitions) -> None:
    graph = definitions.get_repository_def().asset_graph
    assert graph.get(dg.AssetKey("predictions")).pools == {"gpu"}
    others = graph.get_all_asset_keys() - {dg.AssetKey("predictions")}
    assert all("gpu" not in (graph.get(key).pools or set()) for key in others)


def test_checks_by_name(definitions: dg.Definitions) -> None:
    graph = definitions.get_repository_def().asset_graph
    checks = {(key.asset_key.to_user_string(), key.name) for key in graph.asset_check_keys}
    assert ("predictions", "valid_cog") in checks
    assert ("predictions", "nodata_fraction") in checks
    assert {asset for asset, name in checks if name == "all_tasks_ok"} == {
        "tiles",
        "predictions",
        "postprocessed",
        "processor_outputs",
        "shard_settled",
        "geoserver_layers",
    }
