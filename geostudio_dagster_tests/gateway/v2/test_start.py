"""The first minutes: the key of the first start, the keys of the command line, what is refused."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable

import pytest
from click.testing import Result
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from geostudio_dagster.catalog import Viewer
from geostudio_dagster.cli import app
from geostudio_dagster.gateway.app import create_app
from geostudio_dagster.gateway.command import first_steps
from geostudio_dagster.gateway_settings import GatewaySettings
from geostudio_dagster.installation import Installation
from geostudio_dagster.settings import Settings

KEYS = "/v2/auth/api-keys"
Cli = Callable[..., Result]


@pytest.fixture
def cli(settings: Settings) -> Cli:
    return lambda *words: CliRunner().invoke(app, list(words))


def test_the_first_start_makes_one_administrators_key_and_says_how_to_use_it(
    installation: Installation,
) -> None:
    catalog, settings = installation.catalog, installation.settings
    said = "\n".join(first_steps(catalog, settings, "http://127.0.0.1:8091"))
    (value,) = set(re.findall(r"pak-\w{32}", said))
    assert f"curl -H 'X-API-Key: {value}' http://127.0.0.1:8091/v2/models" in said
    assert catalog.viewer_of_key(value) == Viewer("local@localhost", admin=True)
    again = "\n".join(first_steps(catalog, settings, "http://127.0.0.1:8091"))
    assert "pak-" not in again
    assert len(catalog.keys()) == 1


def test_keys_are_made_listed_and_revoked_at_the_terminal(
    cli: Cli, installation: Installation
) -> None:
    made = cli("keys", "create", "Ann@Example.org", "--label", "[red]laptop")
    value = made.stdout.strip()
    assert re.fullmatch(r"pak-\w{32}", value)
    assert installation.catalog.viewer_of_key(value) == Viewer("ann@example.org")
    listed = cli("keys", "list", "--json")
    assert "[red]laptop" in listed.stdout
    assert value not in listed.stdout
    (record,) = installation.catalog.keys()
    assert cli("keys", "revoke", record.id).stdout == f"{record.id}: revoked\n"
    assert installation.catalog.viewer_of_key(value) is None
    assert cli("keys", "revoke", record.id).exit_code == 1


def test_an_administrator_is_made_and_unmade(cli: Cli, installation: Installation) -> None:
    value = cli("keys", "create", "root@example.org", "--admin").stdout.strip()
    assert installation.catalog.viewer_of_key(value) == Viewer("root@example.org", admin=True)
    cli("keys", "create", "root@example.org", "--no-admin")
    assert installation.catalog.viewer_of_key(value) == Viewer("root@example.org")
    third = cli("keys", "create", "root@example.org")
    assert (third.exit_code, third.stdout) == (1, "")
    assert "has 2 keys; revoke one first" in third.stderr


def test_what_is_no_address_gets_no_key(cli: Cli) -> None:
    refused = cli("keys", "create", "nobody")
    assert refused.exit_code == 2
    assert "'nobody' is no e-mail address; write name@host" in refused.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "10.1.2.3", "gateway.example.org", "::"])
def test_without_authentication_nothing_but_loopback_is_served(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("GEOSTUDIO_GATEWAY__AUTH", "off")
    refused = cli("gateway", "--host", host)
    assert refused.exit_code == 2
    assert f"is off, but {host} can be reached from other machines" in refused.stderr


def test_without_authentication_everybody_on_loopback_is_the_local_user(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    opened = settings.model_copy(update={"gateway": GatewaySettings(auth="off")})
    with TestClient(create_app(opened), base_url="http://127.0.0.1") as client:
        assert "Authentication is off" in caplog.text
        assert client.post("/v2/groups", json={"name": "us"}).json()["created_by"] == (
            "local@localhost"
        )
    # However the process was started: a call that came in over another address is refused.
    exposed = opened.model_copy(update={"gateway_url": "http://10.1.2.3"})
    with TestClient(create_app(exposed), base_url="http://10.1.2.3") as client:
        refused = client.get(KEYS)
        assert refused.status_code == 403
        assert "on the loopback address only" in refused.json()["detail"]


def test_the_secret_of_links_is_ours_alone_and_stays(settings: Settings) -> None:
    for _ in range(2):
        with TestClient(create_app(settings), base_url="http://127.0.0.1"):
            secret = settings.data_folder / "gateway.secret"
            assert stat.S_IMODE(secret.stat().st_mode) == 0o600
            assert len(secret.read_text()) == 64
            first = locals().get("first", secret.read_text())
            assert secret.read_text() == first
