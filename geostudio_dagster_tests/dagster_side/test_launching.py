"""Requests while Dagster is down: kept, told of, and worked when it is back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fastapi.testclient import TestClient

from geostudio_dagster.catalog import ModelRecord
from geostudio_dagster.catalog.heartbeats import planner_lease
from geostudio_dagster.gateway.app import create_app
from geostudio_dagster.gateway.place import GatewayPlace
from geostudio_dagster.installation import Installation
from geostudio_dagster.pipeline import launches
from geostudio_dagster.pipeline.plans import plan_request
from geostudio_dagster_tests.conftest import MakeScene
from geostudio_dagster_tests.driving import Driver, run_until, submit
from geostudio_dagster_tests.ports import held_port, port_of


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that nobody listens on."""
    with held_port() as held:
        yield port_of(held)


@contextmanager
def gateway(installation: Installation, port: int) -> Iterator[tuple[TestClient, GatewayPlace]]:
    address = {"dagster_url": f"http://127.0.0.1:{port}"}
    app = create_app(installation.settings.model_copy(update=address))
    _, key = installation.catalog.create_key("ann@example.org", days=1)
    headers = {"X-API-Key": key}
    with TestClient(app, base_url="http://127.0.0.1", headers=headers) as client:
        yield client, app.state.place


def test_a_request_is_kept_while_dagster_is_down_and_worked_when_it_is_back(
    driver: Driver, model: ModelRecord, make_scene: MakeScene, closed_port: int
) -> None:
    scene = make_scene("kept_2024-06-30.tif", size=256)
    body = {"model_id": model.id, "spatial_domain": {"urls": [str(scene)]}}
    with gateway(driver.installation, closed_port) as (client, place):
        answer = client.post("/v2/inference", json=body)
        assert answer.status_code == 201
        request = answer.json()["id"]
        assert place.launcher.state() == "degraded"
        # The second one does not even ask; neither is held back from the sensors.
        assert client.post("/v2/inference", json=body).status_code == 201
    assert driver.installation.catalog.request(request).status == "PENDING"
    assert not launches.is_being_planned(driver.installation, request)
    assert driver.until_over(request) == "COMPLETED"


def test_a_request_that_the_gateway_plans_is_left_to_it_while_it_lives(
    driver: Driver, model: ModelRecord, make_scene: MakeScene
) -> None:
    place = driver.installation
    request = submit(place, [make_scene("held.tif", size=256)], model)
    place.catalog.keep_alive(planner_lease(request), 3600)
    for _ in range(3):
        driver.tick()
    assert place.catalog.request(request).status == "PENDING"
    # The gateway died: its word holds no longer than a lease.
    place.catalog.keep_alive(planner_lease(request), 0)
    run_until(lambda: place.catalog.request(request).n_tasks == 1, driver.tick)


def test_a_shard_is_taken_by_one_of_those_who_dispatch(
    driver: Driver, model: ModelRecord, make_scene: MakeScene
) -> None:
    place = driver.installation
    request = submit(place, [make_scene("shared.tif", size=256)], model)
    other = submit(place, [make_scene("other.tif", size=256)], model)
    for key in (request, other):
        plan_request(place, key)
    place.catalog.keep_alive(planner_lease(request), 3600)
    # The one that is held, though older, takes no place of what may be launched at once.
    assert [launch.partition for launch in launches.take_shards(place, 1)] == [f"{other}/00000"]
    place.catalog.shard_run_ended(f"{other}/00000", "", launches.now(), 0.0)
    (mine,) = launches.take_shards(place, 10, request)
    place.catalog.keep_alive(planner_lease(request), 0)
    assert mine.partition == f"{request}/00000"
    assert mine.tags["dagster/partition"] == mine.partition
    assert launches.take_shards(place, 10, request) == []
    assert [launch.partition for launch in launches.take_shards(place, 10)] == [f"{other}/00000"]
    launches.give_back(place, [mine])
    (again,) = launches.take_shards(place, 10)
    assert again.partition == mine.partition
    assert again.run_key != mine.run_key
