"""Layers on GeoServer, published through REST so that doing it twice changes nothing.

The coverage's abstract ends in the digest of what is published (pixels, style, title). It is
taken away before the first change and written by the last call, so an interrupted publication
is never mistaken for a finished one.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from xml.etree import ElementTree as ET

from geostudio_dagster.publish import sld
from geostudio_dagster.publish.geoserver_rest import GeoServerError, GeoServerRest
from geostudio_dagster.settings import GeoServerSettings

_XML = {"Content-Type": "application/xml; charset=UTF-8"}
_DIGEST = "Published content: sha256 "
_CONFLICT = 409
_NOT_FOUND = 404
_MOSAIC_TYPE = "ImageMosaic"
_GEOTIFF_TYPE = "GeoTIFF"
_TIME_REGEX = "regex=[0-9]{4}-[0-9]{2}-[0-9]{2}\n"
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class GranuleFile:
    """One GeoTIFF of a layer.

    Attributes:
        path: the file.
        name: its name without extension, unique in the layer, such as the task's id.
        crs: anything that is equal for granules of one CRS, such as its WKT.
        date: ISO date (``2024-06-30``), if known; of a range its first day counts.
    """

    path: Path
    name: str
    crs: str
    date: str | None = None


@dataclass(frozen=True, slots=True)
class Publication:
    """A layer's address on GeoServer (``workspace:layer``) and whether this call changed it."""

    uri: str
    changed: bool


class GeoServer:
    """Publishes raster layers into one workspace; vectors: ``publish.geoserver_vectors``.

    Args:
        settings: address, user, workspace, and the tries of repeatable calls that fail for a
            passing reason.
        first_wait_s: wait before the second try; doubles each time.
        chunk_files: granules per upload of a mosaic.
        chunk_bytes: bytes per upload of a mosaic (one granule may be larger).
    """

    def __init__(
        self,
        settings: GeoServerSettings,
        *,
        first_wait_s: float = 1.0,
        chunk_files: int = 50,
        chunk_bytes: int = 256 * 1024**2,
    ) -> None:
        self.workspace = settings.workspace
        self._rest = GeoServerRest(settings, first_wait_s=first_wait_s)
        self._chunk_files = chunk_files
        self._chunk_bytes = chunk_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._rest.close()

    def publish_layer(
        self,
        name: str,
        *,
        title: str,
        abstract: str,
        style: str,
        digest: str,
        granules: Sequence[GranuleFile],
        scratch: Path | None = None,
    ) -> Publication:
        """Make the layer ``name`` show exactly ``granules``, drawn by the SLD ``style``.

        One granule becomes a GeoTIFF store, several an ImageMosaic (with a time dimension where
        all have dates). Where the published digest equals ``digest``, only GETs are made.

        Args:
            name: store, coverage, layer and style all take it.
            title: the layer's title.
            abstract: what people read about it.
            style: SLD 1.0.0 text.
            digest: changes whenever pixels, style or title do.
            granules: at least one file.
            scratch: where mosaic uploads are packed; default is the system's temporary folder.

        Raises:
            GeoServerError: with GeoServer's own message and HTTP status.
            ValueError: there are no granules, or two of one name.
        """
        if not granules or len({granule.name for granule in granules}) != len(granules):
            raise ValueError("a layer needs granules, each of its own name")
        uri = f"{self.workspace}:{name}"
        published = self._coverage(name)
        if digest_of(published) == digest and self._has_style(name):
            return Publication(uri, changed=False)
        self._ensure_workspace()
        if published is not None:
            self._describe(name, title, abstract, digest="")
        self._upload(name, granules, scratch)
        self._put_style(name, style)
        self._assign_style(name)
        timed = len(granules) > 1 and _all_dated(granules)
        self._describe(name, title, abstract, digest=digest, timed=timed)
        return Publication(uri, changed=True)

    def delete_layer(self, name: str) -> None:
        """Remove the layer with its store, files and style; nothing happens where it is not."""
        self._delete_store(name)
        vectors = ("rest", "workspaces", self.workspace, "datastores", name)
        self._delete(*vectors, recurse="true", purge="all")
        self._delete("rest", "workspaces", self.workspace, "styles", name)

    # What is there

    def _store(self, name: str) -> tuple[str, ...]:
        return ("rest", "workspaces", self.workspace, "coveragestores", name)

    def _coverage(self, name: str) -> dict[str, Any] | None:
        found = self._rest.find(*self._store(name), "coverages", f"{name}.json")
        return dict(found.json()["coverage"]) if found else None

    def _store_type(self, name: str) -> str | None:
        found = self._rest.find(*self._store(name)[:-1], f"{name}.json")
        return str(found.json()["coverageStore"]["type"]) if found else None

    def _has_style(self, name: str) -> bool:
        found = self._rest.find("rest", "workspaces", self.workspace, "layers", f"{name}.json")
        if found is None:
            return False
        style = found.json()["layer"].get("defaultStyle", {}).get("name", "")
        return str(style) in {name, f"{self.workspace}:{name}"}

    # Changes

    def _ensure_workspace(self) -> None:
        if self._rest.find("rest", "workspaces", f"{self.workspace}.json"):
            return
        document = ET.Element("workspace")
        ET.SubElement(document, "name").text = self.workspace
        try:
            self._rest.call("POST", "rest", "workspaces", headers=_XML, body=_bytes(document))
        except GeoServerError as error:
            if error.status != _CONFLICT:  # somebody else made it meanwhile
                raise

    def _upload(self, name: str, granules: Sequence[GranuleFile], scratch: Path | None) -> None:
        present = self._store_type(name)
        if len(granules) == 1:
            if present not in {None, _GEOTIFF_TYPE}:
                self._delete_store(name)
            self._upload_geotiff(name, granules[0])
            if present == _GEOTIFF_TYPE:
                self._forget_tiles(name)
            return
        if present is not None:
            # A mosaic keeps granules that are no longer named; a new one holds only ours.
            self._delete_store(name)
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            self._upload_mosaic(name, granules, Path(folder))

    def _upload_geotiff(self, name: str, granule: GranuleFile) -> None:
        self._rest.call(
            "PUT",
            *self._store(name),
            "file.geotiff",
            query={"coverageName": name, "update": "overwrite"},
            headers={"Content-Type": "image/tiff", "Accept": "application/json"},
            body=granule.path,
        )

    def _upload_mosaic(self, name: str, granules: Sequence[GranuleFile], folder: Path) -> None:
        headers = {"Content-Type": "application/zip", "Accept": "application/json"}
        package = folder / "granules.zip"
        for number, chunk in enumerate(self._chunks(granules)):
            _pack(chunk, package, _mosaic_settings(granules) if number == 0 else {})
            if number == 0:
                method, query = "PUT", {"coverageName": name}
            else:
                method, query = "POST", {"updateBBox": "true"}
            self._rest.call(
                method,
                *self._store(name),
                "file.imagemosaic",
                query=query,
                headers=headers,
                body=package,
            )

    def _chunks(self, granules: Sequence[GranuleFile]) -> Iterator[list[GranuleFile]]:
        chunk: list[GranuleFile] = []
        size = 0
        for granule in granules:
            extra = granule.path.stat().st_size
            if chunk and (len(chunk) >= self._chunk_files or size + extra > self._chunk_bytes):
                yield chunk
                chunk, size = [], 0
            chunk.append(granule)
            size += extra
        yield chunk

    def _put_style(self, name: str, style: str) -> None:
        styles = ("rest", "workspaces", self.workspace, "styles")
        if self._rest.find(*styles, f"{name}.json") is None:
            document = ET.Element("style")
            ET.SubElement(document, "name").text = name
            ET.SubElement(document, "filename").text = f"{name}.sld"
            self._rest.call("POST", *styles, headers=_XML, body=_bytes(document))
        # raw: GeoServer keeps our text instead of writing out what it understood of it.
        self._rest.call(
            "PUT",
            *styles,
            name,
            query={"raw": "true"},
            headers={"Content-Type": sld.MEDIA_TYPE},
            body=style.encode(),
        )

    def _assign_style(self, name: str) -> None:
        document = ET.Element("layer")
        default = ET.SubElement(document, "defaultStyle")
        ET.SubElement(default, "name").text = name
        ET.SubElement(default, "workspace").text = self.workspace
        self._rest.call(
            "PUT",
            "rest",
            "workspaces",
            self.workspace,
            "layers",
            name,
            headers=_XML,
            body=_bytes(document),
        )

    def _describe(
        self, name: str, title: str, abstract: str, *, digest: str, timed: bool = False
    ) -> None:
        document = ET.Element("coverage")
        ET.SubElement(document, "title").text = sld.xml_text(title)
        ET.SubElement(document, "abstract").text = abstract_with(abstract, digest)
        ET.SubElement(document, "enabled").text = "true"
        if timed:
            document.append(_time_dimension())
        self._rest.call(
            "PUT",
            *self._store(name),
            "coverages",
            name,
            query={"calculate": "nativebbox,latlonbbox"} if digest else {},
            headers=_XML,
            body=_bytes(document),
        )

    def _forget_tiles(self, name: str) -> None:
        """Drop GeoWebCache's tiles of the old pixels."""
        document = ET.Element("truncateLayer")
        ET.SubElement(document, "layerName").text = f"{self.workspace}:{name}"
        try:
            self._rest.call(
                "POST",
                "gwc",
                "rest",
                "masstruncate",
                headers={"Content-Type": "text/xml"},
                body=_bytes(document),
            )
        except GeoServerError as error:
            if error.status != _NOT_FOUND:  # a GeoServer without GeoWebCache has none to drop
                raise

    def _delete_store(self, name: str) -> None:
        self._delete(*self._store(name), recurse="true", purge="all")

    def _delete(self, *segments: str, recurse: str = "true", purge: str = "true") -> None:
        try:
            self._rest.call("DELETE", *segments, query={"recurse": recurse, "purge": purge})
        except GeoServerError as error:
            if error.status != _NOT_FOUND:
                raise


def abstract_with(abstract: str, digest: str) -> str:
    """An abstract that ends in the digest of what is published; without one, as it is."""
    mark = f"\n{_DIGEST}{digest}" if digest else ""
    return sld.xml_text(f"{abstract}{mark}")


def digest_of(described: dict[str, Any] | None) -> str | None:
    """The digest that a coverage's or feature type's abstract ends in."""
    if described is None:
        return None
    _, mark, digest = str(described.get("abstract", "")).rpartition(_DIGEST)
    return digest.strip() if mark else None


def _all_dated(granules: Sequence[GranuleFile]) -> bool:
    return all(granule.date for granule in granules)


def _mosaic_settings(granules: Sequence[GranuleFile]) -> dict[str, str]:
    """The properties files that tell GeoServer how to index the granules."""
    schema = ["*the_geom:Polygon", "location:String"]
    lines: list[str] = []
    collectors: list[str] = []
    files: dict[str, str] = {}
    if _all_dated(granules):
        files["timeregex.properties"] = _TIME_REGEX
        lines.append("TimeAttribute=time")
        schema.append("time:java.util.Date")
        collectors.append("TimestampFileNameExtractorSPI[timeregex](time)")
    if len({granule.crs for granule in granules}) > 1:
        acceptors = "org.geotools.gce.imagemosaic.acceptors.HeterogeneousCRSAcceptorFactory"
        handlers = "org.geotools.gce.imagemosaic.granulehandler.ReprojectingGranuleHandlerFactory"
        lines += [
            f"GranuleAcceptors={acceptors}",
            f"GranuleHandler={handlers}",
            "HeterogeneousCRS=true",
            "MosaicCRS=EPSG\\:4326",
        ]
        schema += ["crs:String", "resolution:String"]
        collectors += ["CRSExtractorSPI(crs)", "ResolutionExtractorSPI(resolution)"]
    lines.append(f"Schema={','.join(schema)}")
    if collectors:
        lines.append(f"PropertyCollectors={','.join(collectors)}")
    files["indexer.properties"] = "\n".join(lines) + "\n"
    return files


def _pack(granules: Sequence[GranuleFile], target: Path, settings: dict[str, str]) -> None:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as package:
        for name, text in settings.items():
            package.writestr(zipfile.ZipInfo(name, _EPOCH), text)
        for granule in granules:
            suffix = f"_{granule.date[:10]}" if granule.date else ""
            package.write(granule.path, f"{granule.name}{suffix}.tif")


def _time_dimension() -> ET.Element:
    metadata = ET.Element("metadata")
    entry = ET.SubElement(metadata, "entry", {"key": "time"})
    info = ET.SubElement(entry, "dimensionInfo")
    ET.SubElement(info, "enabled").text = "true"
    ET.SubElement(info, "presentation").text = "LIST"
    ET.SubElement(info, "units").text = "ISO8601"
    default = ET.SubElement(info, "defaultValue")
    ET.SubElement(default, "strategy").text = "MINIMUM"
    ET.SubElement(info, "nearestMatchEnabled").text = "true"
    return metadata


def _bytes(document: ET.Element) -> bytes:
    return bytes(ET.tostring(document, encoding="UTF-8", xml_declaration=True))
