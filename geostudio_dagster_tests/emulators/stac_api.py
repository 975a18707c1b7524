"""A STAC API that really listens on loopback, with granules as COGs that it serves by ranges."""

from __future__ import annotations

import datetime as dt
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pystac
import rasterio
import shapely
import uvicorn
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from geostudio_dagster.raster.footprint import footprint
from geostudio_dagster_tests.gateway.v2.serving import PATIENCE_S, free_socket

COLLECTION = "s2"


@dataclass
class StacApi:
    """The API's items and files, how it behaves, and what it was asked.

    Attributes:
        page: items of a page. by_get: whether next pages are links to follow by GET.
        refusals: answers to be given to the next searches, as status and headers.
        broken: names of files that are answered with a status.
        searches: bodies of the searches. reads: names of files with the ranges that were read.
    """

    folder: Path
    url: str = ""
    page: int = 10
    by_get: bool = False
    items: list[dict[str, Any]] = field(default_factory=list)
    refusals: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    broken: dict[str, int] = field(default_factory=dict)
    searches: list[dict[str, Any]] = field(default_factory=list)
    reads: list[tuple[str, str]] = field(default_factory=list)

    def granule(
        self,
        name: str,
        moment: str,
        bands: Mapping[str, NDArray[Any]],
        *,
        crs: str = "EPSG:32633",
        corner: tuple[float, float] = (500_000.0, 5_300_000.0),
        resolution: float = 10.0,
        nodata: float | None = 0,
        cloud: float | None = 10.0,
        told: Mapping[str, Any] | None = None,
        **properties: Any,
    ) -> dict[str, Any]:
        """Write a granule's COGs (one a band, each of height x width) and offer it as an item.

        Args:
            told: what the item says of each band's pixels (``raster:bands``).
        """
        assets = {}
        transform = Affine(resolution, 0, corner[0], 0, -resolution, corner[1])
        for band, pixels in bands.items():
            path = self.folder / f"{name}-{band}.tif"
            write_cog(path, pixels, crs=crs, transform=transform, nodata=nodata)
            assets[band] = pystac.Asset(
                f"{self.url}/files/{path.name}",
                media_type=pystac.MediaType.COG,
                roles=["data"],
                extra_fields={"raster:bands": [dict(told)]} if told is not None else {},
            )
        height, width = next(iter(bands.values())).shape
        place = footprint(CRS.from_string(crs), tuple(transform)[:6], (0, 0, width, height))
        assert place is not None
        clouds = {} if cloud is None else {"eo:cloud_cover": cloud}
        item = pystac.Item(
            id=name,
            geometry=place.geometry,
            bbox=list(place.bounds),
            datetime=dt.datetime.fromisoformat(moment),
            properties=clouds | properties,
            collection=COLLECTION,
            assets=assets,
        )
        item.set_self_href(f"{self.url}/collections/{COLLECTION}/items/{name}")
        item.links = [link for link in item.links if link.rel == "self"]
        document = item.to_dict(transform_hrefs=False)
        document["links"].append(
            {"rel": "collection", "href": f"{self.url}/collections/{COLLECTION}"}
        )
        self.items.append(document)
        return document

    def found(self, query: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The items that a search is for, as STAC API says."""
        west, south, east, north = query["bbox"]
        first, last = (dt.datetime.fromisoformat(text) for text in query["datetime"].split("/"))
        area = shapely.box(west, south, east, north)
        return [
            item
            for item in self.items
            if item["collection"] in query["collections"]
            and first <= dt.datetime.fromisoformat(item["properties"]["datetime"]) <= last
            and shapely.intersects(shapely.geometry.shape(item["geometry"]), area)
        ]

    async def search(self, request: Request) -> Response:
        """POST /search, and GET of a further page of one."""
        if self.refusals:
            status, headers = self.refusals.pop(0)
            return JSONResponse({"description": "not now"}, status, headers)
        if request.method == "GET":
            query = json.loads(request.query_params["query"])
        else:
            query = await request.json()
        self.searches.append(query)
        start = int(query.get("token", 0))
        found = self.found(query)
        stop = start + min(self.page, query.get("limit", 10))
        links = [self._next(query, stop)] if stop < len(found) else []
        return JSONResponse(
            {"type": "FeatureCollection", "features": found[start:stop], "links": links}
        )

    def _next(self, query: Mapping[str, Any], token: int) -> dict[str, Any]:
        if self.by_get:
            whole = urlencode({"query": json.dumps({**query, "token": token})})
            return {"rel": "next", "href": f"/search?{whole}"}
        return {
            "rel": "next",
            "href": f"{self.url}/search",
            "method": "POST",
            "body": {"token": token},
            "merge": True,
        }

    async def file(self, request: Request) -> Response:
        """GET /files/<name>, with ranges."""
        name = request.path_params["name"]
        self.reads.append((name, request.headers.get("range", "")))
        if name in self.broken:
            return Response(status_code=self.broken[name])
        return FileResponse(self.folder / name)


def write_cog(path: Path, pixels: NDArray[Any], **profile: Any) -> None:
    """A real COG of one band."""
    height, width = pixels.shape
    with rasterio.open(
        path,
        "w",
        driver="COG",
        width=width,
        height=height,
        count=1,
        dtype=pixels.dtype,
        compress="deflate",
        blocksize=128,
        **profile,
    ) as file:
        file.write(pixels, 1)


@contextmanager
def stac_api(folder: Path) -> Iterator[StacApi]:
    """The API, listening in a thread until the end."""
    folder.mkdir(parents=True, exist_ok=True)
    with free_socket() as own:
        api = StacApi(folder, f"http://127.0.0.1:{own.getsockname()[1]}")
        routes = [
            Route("/search", api.search, methods=["GET", "POST"]),
            Route("/files/{name}", api.file),
        ]
        server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [own]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + PATIENCE_S
        while not server.started:
            assert thread.is_alive() and time.monotonic() < deadline, "the API did not start"
            time.sleep(0.01)
        try:
            yield api
        finally:
            server.should_exit = True
            thread.join(PATIENCE_S)
