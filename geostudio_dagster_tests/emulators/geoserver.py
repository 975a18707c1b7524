"""The REST calls of GeoServer 2.28 that publishing uses, on loopback, with state.

It answers with GeoServer's status codes and messages, and is stricter where that finds mistakes:
uploads must be what their content type says, and SLD must parse.
"""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

from geostudio_dagster_tests.emulators.geoserver_calls import (
    ROUTES,
    Answer,
    Call,
    Recorded,
    RefusedError,
    route,
)
from geostudio_dagster_tests.emulators.geoserver_state import (
    Coverage,
    Store,
    Workspace,
    geotiff_crs,
    index,
    store_document,
    unpack,
)
from geostudio_dagster_tests.emulators.geoserver_styles import StyleRoutes
from geostudio_dagster_tests.emulators.geoserver_vectors import VectorRoutes


class GeoServerEmulator(StyleRoutes, VectorRoutes):
    """State of the emulated server; serve it with :func:`serving`."""

    user = "admin"
    password = "geo:server"

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[Recorded] = []
        self.workspaces: dict[str, Workspace] = {}
        self.truncated: list[str] = []
        self._failures: list[tuple[int, str, str]] = []
        self._lock = threading.RLock()

    def fail_next(
        self, status: int, message: str, *, times: int = 1, content_type: str = "text/plain"
    ) -> None:
        """Answer the next calls with an error instead of doing them."""
        self._failures += [(status, message, content_type)] * times

    def recover(self) -> None:
        """Answer as usual again."""
        self._failures.clear()

    def since(self, start: int) -> list[tuple[str, str]]:
        """Methods and paths of the requests from number ``start`` on."""
        return [(item.method, item.path) for item in self.requests[start:]]

    def answer(self, method: str, path: str, call: Call, authorised: bool) -> Answer:
        with self._lock:
            if self._failures:
                raise RefusedError(*self._failures.pop(0))
            if not authorised:
                page = "<html><head><title>401</title></head><body><h1>Unauthorized</h1></body>"
                raise RefusedError(401, page, "text/html")
            for known, pattern, handler in ROUTES:
                found = pattern.match(path)
                if known == method and found:
                    names = {key: unquote(value) for key, value in found.groupdict().items()}
                    return handler(self, call, **names)
        raise RefusedError(405, f"{method} is not supported for {path}")

    # Lookups

    def workspace(self, ws: str) -> Workspace:
        if ws not in self.workspaces:
            raise RefusedError(404, f"No such workspace: '{ws}' found")
        return self.workspaces[ws]

    def store(self, ws: str, cs: str) -> Store:
        stores = self.workspace(ws).stores
        if cs not in stores:
            raise RefusedError(404, f"No such coverage store: {ws},{cs}")
        return stores[cs]

    # Workspaces

    @route("GET", "/rest/workspaces")
    def list_workspaces(self, call: Call) -> Answer:
        return 200, {"workspaces": {"workspace": [{"name": name} for name in self.workspaces]}}

    @route("POST", "/rest/workspaces")
    def add_workspace(self, call: Call) -> Answer:
        name = call.document().findtext("name") or ""
        if name in self.workspaces:
            raise RefusedError(409, f"Workspace '{name}' already exists")
        self.workspaces[name] = Workspace(name)
        return 201, name

    @route("GET", "/rest/workspaces/<ws>")
    def get_workspace(self, call: Call, ws: str) -> Answer:
        return 200, {"workspace": {"name": self.workspace(ws).name}}

    @route("DELETE", "/rest/workspaces/<ws>")
    def delete_workspace(self, call: Call, ws: str) -> Answer:
        if self.workspace(ws).stores and not call.recurse:
            raise RefusedError(403, "Workspace not empty")
        del self.workspaces[ws]
        return 200, ""

    # Coverage stores

    @route("GET", "/rest/workspaces/<ws>/coveragestores")
    def list_stores(self, call: Call, ws: str) -> Answer:
        stores = [{"name": name} for name in self.workspace(ws).stores]
        return 200, {"coverageStores": {"coverageStore": stores} if stores else ""}

    @route("GET", "/rest/workspaces/<ws>/coveragestores/<cs>")
    def get_store(self, call: Call, ws: str, cs: str) -> Answer:
        store = self.store(ws, cs)
        return 200, {"coverageStore": store_document(store, ws)}

    @route("DELETE", "/rest/workspaces/<ws>/coveragestores/<cs>")
    def delete_store(self, call: Call, ws: str, cs: str) -> Answer:
        store = self.store(ws, cs)
        if store.coverages and not call.recurse:
            raise RefusedError(403, "coveragestore not empty")
        workspace = self.workspace(ws)
        for name in store.coverages:
            workspace.layers.pop(name, None)
        del workspace.stores[cs]
        return 200, ""

    @route("PUT", "/rest/workspaces/<ws>/coveragestores/<cs>/file.geotiff")
    def put_geotiff(self, call: Call, ws: str, cs: str) -> Answer:
        if call.content_type not in {"image/tiff", "image/geotiff"}:
            raise RefusedError(415, f"Content-Type {call.content_type!r} is not supported")
        crs = geotiff_crs(call.body)
        granules = {f"{cs}.geotiff": call.body}
        return self._configure(ws, cs, kind="GeoTIFF", granules=granules, crs=crs, call=call)

    @route("PUT", "/rest/workspaces/<ws>/coveragestores/<cs>/file.imagemosaic")
    def put_mosaic(self, call: Call, ws: str, cs: str) -> Answer:
        granules, settings = unpack(call)
        if not granules:
            raise RefusedError(500, "Error auto-configuring coverage")
        crs = geotiff_crs(next(iter(granules.values())))
        return self._configure(
            ws, cs, kind="ImageMosaic", granules=granules, crs=crs, call=call, settings=settings
        )

    @route("POST", "/rest/workspaces/<ws>/coveragestores/<cs>/file.imagemosaic")
    def harvest(self, call: Call, ws: str, cs: str) -> Answer:
        store = self.store(ws, cs)
        if store.type != "ImageMosaic":
            raise RefusedError(
                405, "Coverage store found, but it does not support resource harvesting"
            )
        granules, _ = unpack(call)
        index(store, granules)
        return 202, ""

    def _configure(
        self,
        ws: str,
        cs: str,
        *,
        kind: str,
        granules: dict[str, bytes],
        crs: str,
        call: Call,
        settings: dict[str, str] | None = None,
    ) -> Answer:
        workspace = self.workspace(ws)
        store = workspace.stores.setdefault(cs, Store(cs, kind))
        store.type, store.settings, store.crs = kind, {**store.settings, **(settings or {})}, crs
        if kind == "GeoTIFF":
            store.granules.clear()
        index(store, granules)
        name = call.query.get("coverageName", cs)
        store.coverages.setdefault(name, Coverage(name, title=name))
        workspace.layers.setdefault(name, (None, "raster"))
        return 201, {"coverageStore": store_document(store, ws)}

    # Coverages

    @route("GET", "/rest/workspaces/<ws>/coveragestores/<cs>/coverages/<cov>")
    def get_coverage(self, call: Call, ws: str, cs: str, cov: str) -> Answer:
        coverage = self._coverage(ws, cs, cov)
        document: dict[str, Any] = {
            "name": coverage.name,
            "nativeName": coverage.name,
            "title": coverage.title,
            "enabled": coverage.enabled,
        }
        if coverage.abstract:
            document["abstract"] = coverage.abstract
        return 200, {"coverage": document}

    @route("PUT", "/rest/workspaces/<ws>/coveragestores/<cs>/coverages/<cov>")
    def put_coverage(self, call: Call, ws: str, cs: str, cov: str) -> Answer:
        coverage = self._coverage(ws, cs, cov)
        document = call.document()
        for name in ("title", "abstract"):
            text = document.findtext(name)
            if text is not None:
                setattr(coverage, name, text)
        if document.find("metadata/entry[@key='time']/dimensionInfo") is not None:
            if "TimeAttribute" not in self.store(ws, cs).settings:
                raise RefusedError(400, f"Time dimension can't be enabled on {cov}")
            coverage.time = True
        return 200, ""

    def _coverage(self, ws: str, cs: str, cov: str) -> Coverage:
        coverages = self.store(ws, cs).coverages
        if cov not in coverages:
            raise RefusedError(404, f"No such coverage: {ws},{cs},{cov}")
        return coverages[cov]

    @route("POST", "/gwc/rest/masstruncate")
    def truncate(self, call: Call) -> Answer:
        if call.content_type != "text/xml":
            raise RefusedError(400, "Format extension unknown or not specified")
        self.truncated.append(call.document().findtext("layerName") or "")
        return 200, ""


@contextlib.contextmanager
def serving(held: socket.socket | None = None) -> Iterator[GeoServerEmulator]:
    """An empty emulator below ``/geoserver`` of a port of loopback: ``held``, or one of its own."""
    emulator = GeoServerEmulator()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(emulator))
    if held is not None:
        server.socket.close()
        server.socket, server.server_address = held, held.getsockname()
        server.server_activate()
    server.daemon_threads = True
    emulator.url = f"http://127.0.0.1:{server.server_address[1]}/geoserver"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield emulator
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler_of(emulator: GeoServerEmulator) -> type[BaseHTTPRequestHandler]:
    credentials = f"{emulator.user}:{emulator.password}".encode()
    expected = f"Basic {base64.b64encode(credentials).decode()}"

    class HttpHandler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout: ClassVar[float] = 30

        def _serve(self) -> None:
            parts = urlsplit(self.path)
            path = parts.path.removeprefix("/geoserver")
            query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            content_type = (self.headers.get("Content-Type") or "").partition(";")[0].strip()
            authorised = self.headers.get("Authorization") == expected
            try:
                status, content = emulator.answer(
                    self.command, path, Call(query, content_type, body), authorised
                )
                kind = "application/json" if isinstance(content, dict) else "text/plain"
            except RefusedError as refusal:
                status, content, kind = refusal.status, refusal.message, refusal.content_type
            emulator.requests.append(
                Recorded(self.command, path, query, content_type, len(body), status)
            )
            self._send(status, content, kind)

        def _send(self, status: int, content: Any, kind: str) -> None:
            if isinstance(content, dict):
                content = json.dumps(content)
            data = content.encode() if isinstance(content, str) else content
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            if status == 401:
                self.send_header("WWW-Authenticate", 'Basic realm="GeoServer Realm"')
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Requests are recorded, not printed."""

    return HttpHandler
