"""Committed artifacts for download, with HTTP Range so that GDAL reads COGs in place."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import FileResponse

from geostudio_dagster.errors import NotFound
from geostudio_dagster.gateway.grants import Guest
from geostudio_dagster.gateway.place import Place

router = APIRouter(tags=["files"])

# What browsers may show. Anything else, HTML and SVG above all, is only ever downloaded.
_MEDIA_TYPES = {
    ".tif": "image/tiff; application=geotiff; profile=cloud-optimized",
    ".png": "image/png",
    ".json": "application/json",
    ".geojson": "application/geo+json",
    ".zip": "application/zip",
    ".txt": "text/plain; charset=utf-8",
}


@router.api_route("/files/{key:path}", methods=["GET", "HEAD"], operation_id="file")
def file(key: str, guest: Guest, place: Place) -> FileResponse:
    """One artifact by its storage key, which begins with the id of the request that it is of."""
    missing = NotFound(f"There is no file {key}.")
    guest.request(key.split("/", maxsplit=1)[0])
    try:
        path = place.storage.path(key)
    except ValueError:
        raise missing from None
    root = place.storage.root.resolve()
    if not path.is_file() or not path.resolve().is_relative_to(root):
        raise missing
    media_type = _MEDIA_TYPES.get(path.suffix.lower(), "application/octet-stream")
    return FileResponse(
        path,
        media_type=media_type,
        filename=path.name,
        content_disposition_type="inline" if path.suffix in {".json", ".png"} else "attachment",
        headers={"Cache-Control": "private, no-cache"},  # asked for anew; the ETag saves the bytes
    )
