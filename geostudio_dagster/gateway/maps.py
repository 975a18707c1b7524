"""The map page: one HTML file, our own script and style, and maplibre-gl from its package."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse, HTMLResponse
from jinja2 import Environment, FileSystemLoader

from geostudio_dagster.errors import NotFound
from geostudio_dagster.gateway.grants import Guest

router = APIRouter(include_in_schema=False)  # pages and what they load

_HERE = Path(__file__).parent
STATIC = _HERE / "static"
pages = Environment(loader=FileSystemLoader(_HERE / "templates"), autoescape=True, trim_blocks=True)
_MAPLIBRE_FILES = {
    "maplibre-gl.js": "text/javascript; charset=utf-8",
    "maplibre-gl.css": "text/css; charset=utf-8",
}


@router.get("/maps/{request_id}", response_class=HTMLResponse)
def map_page(request_id: str, guest: Guest) -> HTMLResponse:
    """The request on a map: input and prediction, legend, opacity, comparison, values.

    A browser comes with a signed link; the page passes its token on in all that it asks for.
    """
    record = guest.request(request_id)
    page = pages.get_template("map.html").render(
        request_id=record.id, title=record.spec.get("name") or f"Request {record.id}"
    )
    return HTMLResponse(page, headers={"Cache-Control": "private, no-cache"})


@router.get("/maplibre/{name}")
def maplibre_file(name: str) -> FileResponse:
    """maplibre-gl's script and style."""
    if name not in _MAPLIBRE_FILES:
        raise NotFound(f"There is no file {name}.")
    return FileResponse(
        _maplibre_folder() / name,
        media_type=_MAPLIBRE_FILES[name],
        headers={"Cache-Control": "public, max-age=86400"},
    )


def missing_page(problem: str) -> str:
    """A page that says what is not there."""
    return pages.get_template("missing.html").render(problem=problem)


@cache
def _maplibre_folder() -> Path:
    # Found without importing it: the package sets up logging and pulls in widgets.
    spec = importlib.util.find_spec("maplibre")
    if spec is None or not spec.submodule_search_locations:
        raise NotFound("The package maplibre is not installed; install it to see maps.")
    return Path(spec.submodule_search_locations[0]) / "srcjs"
