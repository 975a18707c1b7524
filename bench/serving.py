"""An installation of its own with all services, as ``geostudio-dagster dev`` runs them."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from geostudio_dagster import services
from geostudio_dagster.installation import Installation
from geostudio_dagster.models.registration import register_bundle
from geostudio_dagster.settings import Settings

_ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def serving(folder: Path, bundle: Path) -> Iterator[tuple[Installation, httpx.Client, str]]:
    """Webserver, daemon and gateway over ``folder``: installation, client, the model's id."""
    ports = {name: _free_port() for name in ("webserver", "gateway")}
    settings = Settings(
        data_folder=folder / "data", gateway_url=f"http://127.0.0.1:{ports['gateway']}"
    )
    workspace = _ROOT / "workspace.yaml"
    with Installation.open(settings) as place:
        model = register_bundle(place, bundle, owner="bench")
        _, key = place.catalog.create_key("bench@example.org", days=1)
        home = services.dagster_home(settings, _ROOT / "dagster.yaml")
        wanted = [
            services.webserver(workspace, ports["webserver"]),
            services.daemon(workspace),
            services.gateway(ports["gateway"]),
        ]
        with (
            services.running(wanted, settings, home),
            httpx.Client(
                base_url=settings.gateway_url, headers={"X-API-Key": key}, timeout=60
            ) as client,
        ):
            yield place, client, model.id


def post(client: httpx.Client, model: str, scenes: list[Path]) -> str:
    """Submit a request over scenes; its id."""
    body = {"model_id": model, "spatial_domain": {"urls": list(map(str, scenes))}}
    answer = client.post("/v2/inference", json=body)
    if answer.status_code != httpx.codes.CREATED:
        raise RuntimeError(answer.text)
    return str(answer.json()["id"])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
