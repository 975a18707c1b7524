"""What the emulated GeoServer knows, and how it takes in the files that it is sent."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from dataclasses import dataclass, field
from typing import Any

import rasterio
from rasterio.errors import RasterioError

from geostudio_dagster_tests.emulators.geoserver_calls import Call, RefusedError
from geostudio_dagster_tests.emulators.geoserver_vectors import DataStore


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


def store_document(store: Store, ws: str) -> dict[str, Any]:
    return {
        "name": store.name,
        "type": store.type,
        "enabled": True,
        "workspace": {"name": ws},
        "url": f"file:data/{ws}/{store.name}",
    }


def geotiff_crs(data: bytes) -> str:
    try:
        with rasterio.open(io.BytesIO(data)) as dataset:
            if dataset.driver != "GTiff" or dataset.crs is None:
                raise RefusedError(500, "Error auto-configuring coverage")
            return str(dataset.crs.to_wkt())
    except RasterioError as error:
        raise RefusedError(500, "Could not acquire reader for coverage.") from error


def unpack(call: Call) -> tuple[dict[str, bytes], dict[str, str]]:
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


def index(store: Store, granules: dict[str, bytes]) -> None:
    """Take granules into a store, as a mosaic's index would."""
    for name, data in granules.items():
        crs = geotiff_crs(data)
        if "TimeAttribute" in store.settings and not re.search(store.settings["regex"], name):
            continue
        # A homogeneous mosaic silently leaves out granules of another CRS.
        if crs != store.crs and store.settings.get("HeterogeneousCRS") != "true":
            continue
        store.granules[name] = hashlib.sha256(data).hexdigest()
