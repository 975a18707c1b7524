"""GeoServer's data stores and feature types, as far as vector layers need them."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pyogrio

from geostudio_dagster_tests.emulators.geoserver_calls import Answer, Call, RefusedError, route

_TYPES = {"application/geopackage+sqlite3", "application/x-gpkg", "application/octet-stream"}


@dataclass
class FeatureType:
    name: str
    native_name: str
    title: str = ""
    abstract: str = ""
    bounds: tuple[float, ...] = ()


@dataclass
class DataStore:
    name: str
    package: bytes
    tables: tuple[str, ...]
    feature_types: dict[str, FeatureType] = field(default_factory=dict)


class VectorRoutes:
    """The routes below ``datastores``; the emulator has the workspaces."""

    def workspace(self, ws: str) -> Any:
        raise NotImplementedError

    def data_store(self, ws: str, ds: str) -> DataStore:
        stores: dict[str, DataStore] = self.workspace(ws).data_stores
        if ds not in stores:
            raise RefusedError(404, f"No such datastore: {ws},{ds}")
        return stores[ds]

    @route("PUT", "/rest/workspaces/<ws>/datastores/<ds>/file.gpkg")
    def put_package(self, call: Call, ws: str, ds: str) -> Answer:
        if call.content_type not in _TYPES:
            raise RefusedError(415, f"Content-Type {call.content_type!r} is not supported")
        if call.query.get("configure") != "none":
            raise RefusedError(400, "the emulator configures nothing by itself")
        stores = self.workspace(ws).data_stores
        known = stores.get(ds)
        if known and call.query.get("update") != "overwrite":
            raise RefusedError(500, f"Store '{ds}' already exists in workspace '{ws}'")
        tables = _tables(call.body)
        stores[ds] = DataStore(ds, call.body, tables, known.feature_types if known else {})
        return 201, ""

    @route("DELETE", "/rest/workspaces/<ws>/datastores/<ds>")
    def delete_data_store(self, call: Call, ws: str, ds: str) -> Answer:
        store = self.data_store(ws, ds)
        if store.feature_types and not call.recurse:
            raise RefusedError(403, "datastore not empty")
        workspace = self.workspace(ws)
        for name in store.feature_types:
            workspace.layers.pop(name, None)
        del workspace.data_stores[ds]
        return 200, ""

    @route("POST", "/rest/workspaces/<ws>/datastores/<ds>/featuretypes")
    def add_feature_type(self, call: Call, ws: str, ds: str) -> Answer:
        store, document = self.data_store(ws, ds), call.document()
        name = document.findtext("name") or ""
        native = document.findtext("nativeName") or name
        if name in store.feature_types:
            raise RefusedError(500, f"Resource named '{name}' already exists in store: '{ds}'")
        if native not in store.tables:
            raise RefusedError(
                400, "Trying to create new feature type inside the store, but no attributes"
            )
        store.feature_types[name] = FeatureType(name, native)
        _describe(store.feature_types[name], document)
        self.workspace(ws).layers[name] = (None, "generic")
        return 201, name

    @route("GET", "/rest/workspaces/<ws>/datastores/<ds>/featuretypes/<ft>")
    def get_feature_type(self, call: Call, ws: str, ds: str, ft: str) -> Answer:
        found = self._feature_type(ws, ds, ft)
        document = {
            "name": found.name,
            "nativeName": found.native_name,
            "title": found.title,
            "abstract": found.abstract,
        }
        return 200, {"featureType": document}

    @route("PUT", "/rest/workspaces/<ws>/datastores/<ds>/featuretypes/<ft>")
    def put_feature_type(self, call: Call, ws: str, ds: str, ft: str) -> Answer:
        _describe(self._feature_type(ws, ds, ft), call.document())
        return 200, ""

    def _feature_type(self, ws: str, ds: str, ft: str) -> FeatureType:
        found = self.data_store(ws, ds).feature_types.get(ft)
        if found is None:
            raise RefusedError(404, f"No such feature type: {ws},{ds},{ft}")
        return found


def _describe(feature_type: FeatureType, document: ET.Element) -> None:
    for name in ("title", "abstract"):
        text = document.findtext(name)
        if text is not None:
            setattr(feature_type, name, text)
    box = document.find("latLonBoundingBox")
    if box is not None:
        corners = ("minx", "miny", "maxx", "maxy")
        feature_type.bounds = tuple(float(box.findtext(corner) or "nan") for corner in corners)


def _tables(package: bytes) -> tuple[str, ...]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "package.gpkg"
        path.write_bytes(package)
        try:
            return tuple(str(name) for name, _ in pyogrio.list_layers(path))
        except pyogrio.errors.DataSourceError as error:
            raise RefusedError(500, "Could not open the GeoPackage") from error
