"""The REST calls of GeoServer 2.28 that publishing uses, on loopback, with state.

It answers with GeoServer's status codes and messages, and is stricter where that finds mistakes:
uploads must be what their content type says, and SLD must parse.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import re
import socket
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree as ET

import rasterio
from rasterio.errors import RasterioError

from geostudio_dagster_tests.emulators.geoserver_calls import (
    ROUTES,
    Answer,
    Call,
    Recorded,
    RefusedError,
    route,
)
from geostudio_dagster_tests.emulators.geoserver_vectors import DataStore, VectorRoutes

SLD = "{http://www.opengis.net/sld}"


@dataclass
class Coverage:
    name: str
    title: str
    abstract: str = ""
    enabled: bool = True
    time: bool = False


@dataclass
class Store:
    name: str
    type: str
    settings: dict[str, str] = field(default_factory=dict)
    granules: dict[str, str] = field(default_factory=dict)  # file name -> sha256
    crs: str = ""
    coverages: dict[str, Coverage] = field(default_factory=dict)


@dataclass
class Style:
    name: str
    filename: str
    body: bytes = b""


@dataclass
class Workspace:
    name: str
    stores: dict[str, Store] = field(default_factory=dict)
    data_stores: dict[str, DataStore] = field(default_factory=dict)
    styles: dict[str, Style] = field(default_factory=dict)
    layers: dict[str, tuple[str | None, str]] = field(default_factory=dict)  # default style


class GeoServerEmulator(VectorRoutes):
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

    def style(self, ws: str, style: str) -> Style:
        styles = self.workspace(ws).styles
        if style not in styles:
            raise RefusedError(404, f"No such style {style} in workspace {ws}")
        return styles[style]

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
        return 200, {"coverageStore": _store_document(store, ws)}

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
        crs = _geotiff_crs(call.body)
        granules = {f"{cs}.geotiff": call.body}
        return self._configure(ws, cs, kind="GeoTIFF", granules=granules, crs=crs, call=call)

    @route("PUT", "/rest/workspaces/<ws>/coveragestores/<cs>/file.imagemosaic")
    def put_mosaic(self, call: Call, ws: str, cs: str) -> Answer:
        granules, settings = _unpack(call)
        if not granules:
            raise RefusedError(500, "Error auto-configuring coverage")
        crs = _geotiff_crs(next(iter(granules.values())))
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
        granules, _ = _unpack(call)
        _index(store, granules)
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
        _index(store, granules)
        name = call.query.get("coverageName", cs)
        store.coverages.setdefault(name, Coverage(name, title=name))
        workspace.layers.setdefault(name, (None, "raster"))
        return 201, {"coverageStore": _store_document(store, ws)}

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

    # Styles

    @route("GET", "/rest/workspaces/<ws>/styles")
    def list_styles(self, call: Call, ws: str) -> Answer:
        return 200, {"styles": {"style": [{"name": name} for name in self.workspace(ws).styles]}}

    @route("POST", "/rest/workspaces/<ws>/styles")
    def add_style(self, call: Call, ws: str) -> Answer:
        document = call.document()
        name = document.findtext("name") or ""
        styles = self.workspace(ws).styles
        if name in styles:
            raise RefusedError(500, f"Style named '{name}' already exists in workspace {ws}")
        styles[name] = Style(name, document.findtext("filename") or "")
        return 201, name

    @route("GET", "/rest/workspaces/<ws>/styles/<style>.sld")
    def get_style_body(self, call: Call, ws: str, style: str) -> Answer:
        return 200, self.style(ws, style).body

    @route("GET", "/rest/workspaces/<ws>/styles/<style>")
    def get_style(self, call: Call, ws: str, style: str) -> Answer:
        found = self.style(ws, style)
        document = {"name": found.name, "format": "sld", "filename": found.filename}
        return 200, {"style": {**document, "languageVersion": {"version": "1.0.0"}}}

    @route("PUT", "/rest/workspaces/<ws>/styles/<style>")
    def put_style(self, call: Call, ws: str, style: str) -> Answer:
        found = self.style(ws, style)
        if call.content_type != "application/vnd.ogc.sld+xml":
            raise RefusedError(415, f"Content-Type {call.content_type!r} is not supported")
        try:
            root = ET.fromstring(call.body)
        except ET.ParseError as error:
            raise RefusedError(400, f"Invalid style:{error}") from error
        if root.tag not in {f"{SLD}StyledLayerDescriptor", "StyledLayerDescriptor"}:
            raise RefusedError(400, "Invalid style:not a StyledLayerDescriptor")
        # Without raw, GeoServer writes out what it understood, not what it was sent.
        found.body = call.body if call.query.get("raw") == "true" else ET.tostring(root)
        return 200, ""

    @route("DELETE", "/rest/workspaces/<ws>/styles/<style>")
    def delete_style(self, call: Call, ws: str, style: str) -> Answer:
        workspace = self.workspace(ws)
        if style not in workspace.styles:
            raise RefusedError(404, f"Style {style} not found")
        users = [name for name, used in workspace.layers.items() if used == (ws, style)]
        if users and not call.recurse:
            raise RefusedError(403, "Can't delete style referenced by existing layers.")
        for name in users:
            workspace.layers[name] = (None, "raster")
        del workspace.styles[style]
        return 200, ""

    # Layers

    @route("GET", "/rest/layers")
    def list_layers(self, call: Call) -> Answer:
        names = [f"{ws.name}:{name}" for ws in self.workspaces.values() for name in ws.layers]
        return 200, {"layers": {"layer": [{"name": name} for name in names]}}

    @route("GET", "/rest/workspaces/<ws>/layers/<layer>")
    def get_layer(self, call: Call, ws: str, layer: str) -> Answer:
        workspace = self.workspace(ws)
        if layer not in workspace.layers:
            raise RefusedError(404, f"No such layer: {layer}")
        owner, name = workspace.layers[layer]
        style = {"name": f"{owner}:{name}", "workspace": owner} if owner else {"name": name}
        return 200, {"layer": {"name": layer, "type": "RASTER", "defaultStyle": style}}

    @route("PUT", "/rest/workspaces/<ws>/layers/<layer>")
    @route("PUT", "/rest/layers/<ws>:<layer>")
    def put_layer(self, call: Call, ws: str, layer: str) -> Answer:
        workspace = self.workspace(ws)
        if layer not in workspace.layers:
            raise RefusedError(404, f"No such layer: {layer}")
        document = call.document()
        name = document.findtext("defaultStyle/name") or ""
        owner = document.findtext("defaultStyle/workspace")
        if owner is None and name in workspace.styles:
            owner = ws
        if owner is not None:
            self.style(owner, name)
        elif name != "raster":
            raise RefusedError(404, f"No such style: {name}")
        workspace.layers[layer] = (owner, name)
        return 200, ""

    @route("DELETE", "/rest/workspaces/<ws>/layers/<layer>")
    def delete_layer(self, call: Call, ws: str, layer: str) -> Answer:
        workspace = self.workspace(ws)
        if layer not in workspace.layers:
            raise RefusedError(404, f"No such layer: {layer}")
        del workspace.layers[layer]
        if call.recurse:
            for store in workspace.stores.values():
                store.coverages.pop(layer, None)
            for vectors in workspace.data_stores.values():
                vectors.feature_types.pop(layer, None)
        return 200, ""

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


def _store_document(store: Store, ws: str) -> dict[str, Any]:
    return {
        "name": store.name,
        "type": store.type,
        "enabled": True,
        "workspace": {"name": ws},
        "url": f"file:data/{ws}/{store.name}",
    }


def _geotiff_crs(data: bytes) -> str:
    try:
        with rasterio.open(io.BytesIO(data)) as dataset:
            if dataset.driver != "GTiff" or dataset.crs is None:
                raise RefusedError(500, "Error auto-configuring coverage")
            return str(dataset.crs.to_wkt())
    except RasterioError as error:
        raise RefusedError(500, "Could not acquire reader for coverage.") from error


def _unpack(call: Call) -> tuple[dict[str, bytes], dict[str, str]]:
    """Granules and merged properties of a mosaic's zip."""
    if call.content_type != "application/zip":
        raise RefusedError(415, f"Content-Type {call.content_type!r} is not supported")
    granules: dict[str, bytes] = {}
    settings: dict[str, str] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(call.body)) as package:
            for name in package.namelist():
                if name.endswith(".properties"):
                    lines = package.read(name).decode("latin-1").splitlines()
                    pairs = [line.split("=", 1) for line in lines if "=" in line]
                    settings |= {key: value.replace("\\:", ":") for key, value in pairs}
                elif name.endswith(".tif"):
                    granules[name] = package.read(name)
    except zipfile.BadZipFile as error:
        raise RefusedError(500, "Error occured unzipping file") from error
    return granules, settings


def _index(store: Store, granules: dict[str, bytes]) -> None:
    """Take granules into a store, as a mosaic's index would."""
    for name, data in granules.items():
        crs = _geotiff_crs(data)
        if "TimeAttribute" in store.settings and not re.search(store.settings["regex"], name):
            continue
        # A homogeneous mosaic silently leaves out granules of another CRS.
        if crs != store.crs and store.settings.get("HeterogeneousCRS") != "true":
            continue
        store.granules[name] = hashlib.sha256(data).hexdigest()
