"""The API's description for people (``/docs``) and for programs (``/openapi.json``)."""

from __future__ import annotations

import importlib.util
import warnings
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse

from geostudio_dagster.errors import NotFound
from geostudio_dagster.gateway.addresses import PREFIX
from geostudio_dagster.gateway.maps import pages
from geostudio_dagster.gateway.principal import bearer_header, key_header
from geostudio_dagster.gateway.problems import Problem, responses

router = APIRouter(include_in_schema=False)

_SWAGGER_FILES = {
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui.css": "text/css; charset=utf-8",
}
_KEY: dict[str, list[str]] = {key_header.scheme_name: []}
_BEARER: dict[str, list[str]] = {bearer_header.scheme_name: []}
TAGS = {
    "auth": "API keys.",
    "models": "Models, and what they are made of.",
    "inference": "Requests: written, planned, followed, stopped, tried again.",
    "tasks": "The pieces of a request, their outputs and logs.",
    "notifications": "What is said about requests, and what happens to them.",
    "webhooks": "What webhooks were told, and how that is signed.",
    "groups": "People who share artifacts.",
    "generic processors": "Users' own Python steps.",
    "layers": "Layers as tiles.",
    "files": "Artifacts for download.",
    "not here": "Parts of GEOStudio that have no place here; they say where to go instead.",
    "health": "Whether the service works.",
}


@router.get("/")
def root(request: Request) -> RedirectResponse:
    """The documentation is the entrance."""
    return RedirectResponse(f"{request.scope.get('root_path', '')}/docs", status_code=307)


@router.get("/docs")
def docs(request: Request) -> HTMLResponse:
    """Swagger UI over our own description, all of it from this host."""
    page = pages.get_template("docs.html").render(root=request.scope.get("root_path", ""))
    return HTMLResponse(page, headers={"Cache-Control": "no-cache"})


@router.get("/swagger/{name}")
def swagger_file(name: str) -> FileResponse:
    """Swagger UI's script and style."""
    if name not in _SWAGGER_FILES:
        raise NotFound(f"There is no file {name}.")
    return FileResponse(
        _swagger_folder() / name,
        media_type=_SWAGGER_FILES[name],
        headers={"Cache-Control": "public, max-age=86400"},
    )


def describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the problem documents that every route may answer."""
    if app.openapi_schema is None:
        used = {tag for route in app.routes for tag in getattr(route, "tags", ())}
        with warnings.catch_warnings():
            # Routes that answer HEAD, too, have one id for both.
            warnings.filterwarnings("ignore", message="Duplicate Operation ID")
            document = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
                tags=[{"name": n, "description": t} for n, t in TAGS.items() if n in used],
                servers=[{"url": "/"}, {"url": PREFIX}],
            )
        for methods in document["paths"].values():
            methods.pop("head", None)  # as GET, without the body
            for operation in methods.values():
                if operation.get("security") == [_KEY]:  # see principal.identify
                    operation["security"] = [_KEY, _BEARER]
                if "422" in operation["responses"]:  # FastAPI writes its own shape here
                    operation["responses"]["422"] = responses(422)[422]
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas["Problem"] = Problem.model_json_schema()
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        app.openapi_schema = document
    return app.openapi_schema


@cache
def _swagger_folder() -> Path:
    spec = importlib.util.find_spec("swagger_ui_bundle")
    if spec is None or not spec.submodule_search_locations:
        raise NotFound("The package swagger-ui-bundle is not installed; install it to see this.")
    (folder,) = (Path(spec.submodule_search_locations[0]) / "vendor").glob("swagger-ui-*")
    return folder
