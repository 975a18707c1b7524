"""A whole installation that listens: its gateway, its runs, a server of scenes, GEOStudio's SDK."""

from __future__ import annotations

import functools
import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import geostudio
import geostudio.backends.v2.ginference.client as inference_client
import pytest
import requests
from dagster import DagsterInstance
from geostudio.backends import base_client

from geostudio_dagster.installation import Installation
from geostudio_dagster.models.registration import register_bundle
from geostudio_dagster.settings import FetchSettings, Settings, ShardSettings
from geostudio_dagster_tests.conftest import write_scene
from geostudio_dagster_tests.driving import Driver
from geostudio_dagster_tests.gateway.v2.serving import PATIENCE_S, Api, listening

USER = "researcher@example.org"


@dataclass
class Studio:
    """What a user of GEOStudio has: an address, a key, the SDK, and scenes at addresses."""

    api: Api
    driver: Driver
    files: Path
    files_url: str
    sdk: geostudio.Client
    answers: list[requests.Response] = field(default_factory=list)

    def scene(self, name: str, **options: Any) -> str:
        """Address of a new scene."""
        write_scene(self.files, name, **options)
        return f"{self.files_url}/{name}"

    def statuses(self) -> list[int]:
        """Statuses of what was answered to the SDK since this was asked last."""
        found = [answer.status_code for answer in self.answers]
        self.answers.clear()
        return found

    def work_while_polling(self, inference_id: str) -> dict[str, Any]:
        """The SDK polls a request to its end while the runs do their work."""
        told: list[dict[str, Any]] = []
        poll = self.sdk.poll_inference_until_finished
        poller = threading.Thread(target=lambda: told.append(poll(inference_id)), daemon=True)
        poller.start()
        assert self.driver.until_over(inference_id)
        poller.join(PATIENCE_S)
        assert told, "the SDK still polls"
        return told[0]


@contextmanager
def open_studio(folder: Path, bundle_folder: Path) -> Iterator[Studio]:
    """A studio below ``folder``, with the demo model registered."""
    data, files = folder / "data", folder / "files"
    files.mkdir()
    chosen = Settings(
        data_folder=data,
        fetch=FetchSettings(allowed_hosts=("127.0.0.1",), attempts=1),
        shards=ShardSettings(retry_delay_s=0),
    )
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("GEOSTUDIO_DATA_FOLDER", str(data))
        patch.setenv("GEOSTUDIO_FETCH__ALLOWED_HOSTS", '["127.0.0.1"]')
        patch.setenv("GEOSTUDIO_FETCH__ATTEMPTS", "1")
        patch.setenv("GEOSTUDIO_SHARDS__RETRY_DELAY_S", "0")
        # The SDK waits ten seconds at least between two looks, which proves nothing more.
        patch.setattr(inference_client, "sleep", lambda _: time.sleep(0.2))
        # Where simplejson is installed, too, what requests raises at an empty body is another
        # error than the one that the SDK waits for.
        known = SimpleNamespace(dumps=json.dumps, JSONDecodeError=requests.JSONDecodeError)
        patch.setattr(base_client, "json", known)
        installation = stack.enter_context(Installation.open(chosen))
        model = register_bundle(installation, bundle_folder, owner="tests")
        api = Api(installation, model, stack.enter_context(listening(chosen)))
        stack.callback(api.close)
        instance = stack.enter_context(DagsterInstance.ephemeral())
        files_url = stack.enter_context(_serving(files))
        sdk = _sdk(folder, api)
        studio = Studio(api, Driver(installation, instance), files, files_url, sdk)
        for part in (sdk, sdk.ginference, sdk.gtune):
            part.session.hooks["response"].append(lambda answer, *_, **__: _note(studio, answer))
        yield studio


def _note(studio: Studio, answer: requests.Response) -> None:
    studio.answers.append(answer)


def _sdk(folder: Path, api: Api) -> geostudio.Client:
    """The SDK as its guide configures it: with a file of addresses and a key."""
    config = folder / "geostudio_config"
    config.write_text(f"BASE_GATEWAY_API_URL={api.url}\nGEOSTUDIO_API_KEY={api.key(USER)}\n")
    return geostudio.Client(geostudio_config_file=str(config))


@contextmanager
def _serving(folder: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Keep the test output clean."""

    handler = functools.partial(Quiet, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
