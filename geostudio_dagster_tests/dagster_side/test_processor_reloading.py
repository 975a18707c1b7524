"""One change of the processors is one reload of their location, whoever notices it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from geostudio_dagster.errors import Unavailable
from geostudio_dagster.installation import Installation
from geostudio_dagster.processor_reloading import reload_if_changed, reload_soon
from geostudio_dagster_tests.dagster_side.patience import until
from geostudio_dagster_tests.scripts import COUNT, DROP, upload


class Webserver:
    """Answers as Dagster's webserver does, and counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer: dict[str, object] = {}
        self.during: list[Installation] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append(body["variables"]["location"])
                for installation in outer.during:
                    outer.during = []
                    upload(installation, "meanwhile", COUNT)
                data = json.dumps({"data": {"reloadRepositoryLocation": outer.answer}}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                """Keep the test output clean."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.loads()
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def loads(self) -> None:
        self.answer = {
            "__typename": "WorkspaceLocationEntry",
            "locationOrLoadError": {"__typename": "RepositoryLocation"},
        }


@pytest.fixture
def webserver() -> Iterator[Webserver]:
    running = Webserver()
    yield running
    running.server.shutdown()
    running.server.server_close()


def at(installation: Installation, url: str | None) -> Installation:
    settings = installation.settings.model_copy(update={"dagster_url": url})
    return Installation(settings, installation.catalog, installation.storage)


def test_one_change_is_one_reload(installation: Installation, webserver: Webserver) -> None:
    place = at(installation, webserver.url)
    upload(installation, "drop-class", DROP)
    assert reload_if_changed(place) == "the processors' location was loaded anew"
    assert reload_if_changed(place) == "no processor changed"
    assert webserver.asked == ["processors"]
    catalog = installation.catalog
    catalog.delete_processor(catalog.processor("drop-class").id)
    reload_soon(place)
    until(lambda: webserver.asked == ["processors"] * 2, "the background asks, too")


def test_what_comes_while_it_loads_is_loaded_next(
    installation: Installation, webserver: Webserver
) -> None:
    upload(installation, "drop-class", DROP)
    webserver.during = [installation]
    assert reload_if_changed(at(installation, webserver.url)).endswith("loaded anew")
    assert len(webserver.asked) == 2


def test_without_a_webserver_it_is_tried_again(
    installation: Installation, webserver: Webserver
) -> None:
    upload(installation, "drop-class", DROP)
    assert "GEOSTUDIO_DAGSTER_URL" in reload_if_changed(installation)
    with pytest.raises(Unavailable, match="does not answer"):
        reload_if_changed(at(installation, "http://127.0.0.1:1"))
    webserver.answer = {"__typename": "PythonError", "message": "a mistake"}
    with pytest.raises(Unavailable, match="was not loaded: a mistake"):
        reload_if_changed(at(installation, webserver.url))
    webserver.loads()
    assert reload_if_changed(at(installation, webserver.url)).endswith("loaded anew")
