"""``api`` really listens on loopback; ``inside`` is the same application in this process."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from fastapi.testclient import TestClient

from geostudio_dagster.catalog import ModelRecord
from geostudio_dagster.gateway.app import create_app
from geostudio_dagster.installation import Installation
from geostudio_dagster.settings import Settings
from geostudio_dagster_tests.gateway.v2.serving import BOB, ROOT, Api, listening


@pytest.fixture
def api(settings: Settings, installation: Installation, model: ModelRecord) -> Iterator[Api]:
    """A server with the demo model registered, authentication on."""
    with listening(settings) as url:
        api = Api(installation, model, url)
        yield api
        api.close()


@pytest.fixture
def inside(settings: Settings, installation: Installation, model: ModelRecord) -> Iterator[Api]:
    """The application in this process, with the demo model registered, authentication on."""
    app = create_app(settings)
    with TestClient(app, base_url="http://127.0.0.1"):  # starts and ends it
        api = Api(installation, model, "http://127.0.0.1", app)
        yield api
        api.close()


@pytest.fixture
def ann(inside: Api) -> httpx.Client:
    """A client of the application in this process with Ann's key."""
    return inside.client()


@pytest.fixture
def bob(inside: Api) -> httpx.Client:
    """The same with Bob's key."""
    return inside.client(BOB)


@pytest.fixture
def root(inside: Api) -> httpx.Client:
    """The same with an administrator's key."""
    return inside.client(ROOT, admin=True)
