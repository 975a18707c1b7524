"""Who may look at maps, layers and files: whoever has a key, or a link that we signed for it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

import httpx
import pytest
from fastapi.testclient import TestClient

from geostudio_dagster.catalog import Viewer
from geostudio_dagster.gateway.app import create_app
from geostudio_dagster.gateway_settings import GatewaySettings
from geostudio_dagster.signing import Signer, map_link, request_scope
from geostudio_dagster_tests.gateway.conftest import REQUEST, World, publish_both
from geostudio_dagster_tests.gateway.test_layers import ZOOM, place, tile_of

TASK = f"{REQUEST}-task_0"
FILE = f"/files/{REQUEST}/{TASK}/{TASK}_pred.tif"
X, Y, *_ = tile_of(*place(128, 128), ZOOM)
PAGES = (
    f"/maps/{REQUEST}",
    f"/layers/{REQUEST}",
    f"/layers/{REQUEST}/pred/tilejson.json",
    f"/layers/{REQUEST}/pred/tiles/{ZOOM}/{X}/{Y}.png",
    f"/layers/{REQUEST}/pred/point?lon=16.4&lat=48.2",
    FILE,
)


@pytest.fixture
def closed(world: World) -> World:
    """The published request, in an installation that asks who is there."""
    publish_both(world)
    world.settings = world.settings.model_copy(update={"gateway": GatewaySettings()})
    return world


@pytest.fixture
def nobody(closed: World) -> Iterator[TestClient]:
    """A browser without a key."""
    with TestClient(create_app(closed.settings), base_url="http://127.0.0.1") as opened:
        yield opened


def sign(world: World, scope: str = request_scope(REQUEST), hours: float = 1) -> str:
    return Signer.open(world.settings).sign(scope, dt.timedelta(hours=hours))


def with_grant(url: str, grant: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}grant={grant}"


def key_of(world: World, email: str) -> dict[str, str]:
    return {"X-API-Key": world.catalog.create_key(email, days=1)[1]}


@pytest.mark.parametrize("url", PAGES)
def test_a_page_opens_by_link_or_by_its_owners_key_and_by_nothing_else(
    closed: World, nobody: TestClient, url: str
) -> None:
    stranger = nobody.get(url)
    assert stranger.status_code == 401
    assert stranger.headers["content-type"] == "application/problem+json"
    assert nobody.get(with_grant(url, sign(closed))).status_code == 200
    assert nobody.get(url, headers=key_of(closed, "tests")).status_code == 200
    foreign = nobody.get(url, headers=key_of(closed, "bob@example.org"))
    assert foreign.status_code == 404
    for grant in (
        sign(closed, hours=-1),
        sign(closed, request_scope("another")),
        sign(closed, f"download:{REQUEST}"),
        sign(closed)[:-2] + "xx",
        "nonsense",
    ):
        refused = nobody.get(with_grant(url, grant))
        assert refused.status_code == 403, grant
        assert "expired" in refused.json()["detail"]
    assert nobody.get(with_grant(url, "x" * 300)).status_code == 422


def test_a_link_covers_one_request_only(closed: World, nobody: TestClient) -> None:
    grant = sign(closed, request_scope("shares"))
    closed.storage.commit_bytes(b"x", "shares/1/a.tif")
    assert nobody.get(f"/files/shares/1/a.tif?grant={grant}").status_code == 404
    assert nobody.get(
        f"/files/{REQUEST}/%2e%2e/shares/1/a.tif?grant={sign(closed)}"
    ).status_code in (
        403,
        404,
    )


def test_what_is_deleted_is_gone_for_links_too(closed: World, nobody: TestClient) -> None:
    grant = sign(closed)
    closed.catalog.delete_request(REQUEST, Viewer("tests"))
    for url in PAGES:
        assert nobody.get(with_grant(url, grant)).status_code == 404, url


def test_addresses_in_answers_carry_the_link_on(closed: World, nobody: TestClient) -> None:
    """QGIS opens the TileJSON by its address alone, and then the tiles that it names."""
    grant = sign(closed)
    document = nobody.get(f"/layers/{REQUEST}?grant={grant}").json()
    layer = document["layers"][1]
    tilejson = nobody.get(layer["tilejson"])
    assert tilejson.status_code == 200
    (template,) = tilejson.json()["tiles"]
    assert template == layer["tiles"][0]
    assert template.endswith(f"&grant={grant}")
    tile = nobody.get(template.format(z=ZOOM, x=X, y=Y))
    assert (tile.status_code, tile.headers["content-type"]) == (200, "image/png")
    assert tile.headers["cache-control"].startswith("private")
    point = httpx.URL(layer["point"]).copy_merge_params({"lon": "16.36", "lat": "48.2"})
    assert nobody.get(str(point)).json()["value"] is not None


def test_with_a_key_addresses_are_plain(closed: World, nobody: TestClient) -> None:
    document = nobody.get(f"/layers/{REQUEST}", headers=key_of(closed, "tests")).json()
    assert "grant" not in str(document)


def test_the_link_that_is_printed_opens_the_page(closed: World, nobody: TestClient) -> None:
    link = map_link(closed.settings, REQUEST)
    assert nobody.get(link.replace("http://127.0.0.1:8091", "")).status_code == 200
    unlocked = closed.settings.model_copy(update={"gateway": GatewaySettings(auth="off")})
    assert map_link(unlocked, REQUEST) == f"http://127.0.0.1:8091/maps/{REQUEST}"
