"""Vector layers on GeoServer: one GeoPackage each, published like the raster layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from geostudio_dagster.publish import sld
from geostudio_dagster.publish.geoserver import GeoServer, Publication, abstract_with, digest_of
from geostudio_dagster.publish.vectors import MEDIA_TYPE
from geostudio_dagster.raster.footprint import Bounds

_XML = {"Content-Type": "application/xml; charset=UTF-8"}
_CRS = "EPSG:4326"


class VectorGeoServer(GeoServer):
    """Publishes vector layers into one workspace."""

    def publish_features(
        self,
        name: str,
        *,
        title: str,
        abstract: str,
        style: str,
        digest: str,
        package: Path,
        bounds: Bounds,
    ) -> Publication:
        """Make the layer ``name`` show the package's table ``name``, drawn by the SLD ``style``.

        Where the published digest equals ``digest``, only GETs are made.

        Args:
            name: store, feature type, layer, style and the package's table all take it.
            title: the layer's title.
            abstract: what people read about it.
            style: SLD 1.0.0 text.
            digest: changes whenever features, style or title do.
            package: a GeoPackage in EPSG:4326.
            bounds: west, south, east, north of its features, degrees.

        Raises:
            GeoServerError: with GeoServer's own message and HTTP status.
        """
        uri = f"{self.workspace}:{name}"
        published = self._feature_type(name)
        if digest_of(published) == digest and self._has_style(name):
            return Publication(uri, changed=False)
        self._ensure_workspace()
        if self._store_type(name) is not None:
            self._delete_store(name)  # was a raster layer; a layer's name is there once
        if published is not None:
            self._put_feature_type("PUT", name, title, abstract, bounds, digest="")
        self._put_package(name, package)
        if published is None:
            self._put_feature_type("POST", name, title, abstract, bounds, digest="")
        else:
            self._forget_tiles(name)
        self._put_style(name, style)
        self._assign_style(name)
        self._put_feature_type("PUT", name, title, abstract, bounds, digest=digest)
        return Publication(uri, changed=True)

    def _data_store(self, name: str) -> tuple[str, ...]:
        return ("rest", "workspaces", self.workspace, "datastores", name)

    def _put_package(self, name: str, package: Path) -> None:
        self._rest.call(
            "PUT",
            *self._data_store(name),
            "file.gpkg",
            query={"configure": "none", "update": "overwrite"},
            headers={"Content-Type": MEDIA_TYPE, "Accept": "application/json"},
            body=package,
        )

    def _feature_type(self, name: str) -> dict[str, Any] | None:
        found = self._rest.find(*self._data_store(name), "featuretypes", f"{name}.json")
        return dict(found.json()["featureType"]) if found else None

    def _put_feature_type(
        self, method: str, name: str, title: str, abstract: str, bounds: Bounds, *, digest: str
    ) -> None:
        document = ET.Element("featureType")
        for key, text in (
            ("name", name),
            ("nativeName", name),
            ("title", sld.xml_text(title)),
            ("abstract", abstract_with(abstract, digest)),
            ("srs", _CRS),
            ("enabled", "true"),
        ):
            ET.SubElement(document, key).text = text
        for key in ("nativeBoundingBox", "latLonBoundingBox"):
            document.append(_box(key, bounds))
        there = () if method == "POST" else (name,)
        body = bytes(ET.tostring(document, encoding="UTF-8", xml_declaration=True))
        self._rest.call(
            method, *self._data_store(name), "featuretypes", *there, headers=_XML, body=body
        )


def _box(key: str, bounds: Bounds) -> ET.Element:
    west, south, east, north = bounds
    if west > east:  # across the antimeridian, which a box here cannot be
        west, east = -180.0, 180.0
    box = ET.Element(key)
    corners = (("minx", west), ("maxx", east), ("miny", south), ("maxy", north))
    for name, value in corners:
        ET.SubElement(box, name).text = f"{value:.15g}"
    ET.SubElement(box, "crs").text = _CRS
    return box
