"""Data sets, base models and templates of tunes: shelves that are empty here.

Models are trained elsewhere and uploaded. Clients that list these find nothing; what would make
something is told so.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path

from geostudio_dagster.errors import NotFound
from geostudio_dagster.gateway.elsewhere import add_not_here
from geostudio_dagster.gateway.paging import Envelope, Page
from geostudio_dagster.gateway.problems import responses

router = APIRouter(tags=["datasets, base models, templates"])

ItemId = Annotated[str, Path(min_length=1, max_length=200)]
_NOT_HERE = (
    "Models are not trained here, so {what} are not kept. Train elsewhere, and upload the result "
    "with POST /v2/upload-completed-tunes."
)


def _shelf(
    name: str,
    what: str,
    missing: str,
    *,
    adding: tuple[str, ...],
    parts: tuple[tuple[str, str], ...],
) -> APIRouter:
    """The routes of one shelf.

    Args:
        adding: paths below it that clients post new things to.
        parts: method and path of what an item of it has.
    """
    shelf = APIRouter(prefix=f"/{name}")
    words = name.replace("-", "_")

    @shelf.get("", operation_id=f"list_{words}")
    def found(page: Page) -> Envelope[dict[str, Any]]:
        """Nothing, in the envelope of a list."""
        return Envelope[dict[str, Any]].of(0, [])

    for path in adding:
        own = path.strip("/").replace("-", "_") or "create"
        add_not_here(shelf, "POST", path, _NOT_HERE.format(what=what), f"{own}_{words}")
    _add_items(shelf, words, missing, parts)
    return shelf


def _add_items(
    shelf: APIRouter, words: str, missing: str, parts: tuple[tuple[str, str], ...]
) -> None:
    """The routes of one item of a shelf, of which there is none."""

    def one(item_id: ItemId) -> None:
        """There is none."""
        raise NotFound(missing)

    own = [(method, "", "item") for method in ("GET", "PATCH", "DELETE")]
    below = [(method, f"/{path}", path.replace("-", "_")) for method, path in parts]
    for method, path, name in [*own, *below]:
        shelf.add_api_route(
            f"/{{item_id}}{path}",
            one,
            methods=[method],
            operation_id=f"{method.lower()}_{words}_{name}",
            response_model=None,
            responses=responses(404),
        )


_TEMPLATE_PARTS = (
    ("GET", "template"),
    ("PUT", "template"),
    ("PUT", "schema"),
    ("GET", "test-render"),
    ("GET", "test-render-user-defined-task"),
)


for _part in (
    _shelf(
        "datasets",
        "data sets",
        "Dataset not found",
        adding=("/onboard", "/pre-scan"),
        parts=(("GET", "sample"),),
    ),
    _shelf(
        "base-models",
        "base models",
        "Base model not found",
        adding=("",),
        parts=(("PATCH", "model-params"),),
    ),
    _shelf(
        "tune-templates",
        "templates of tunes",
        "Template not found",
        adding=("",),
        parts=_TEMPLATE_PARTS,
    ),
):
    router.include_router(_part)

for _path in ("/submit-tune", "/submit-tune/dry-run", "/submit-hpo-tune"):
    _name = _path.strip("/").replace("/", "_").replace("-", "_")
    add_not_here(router, "POST", _path, _NOT_HERE.format(what="training jobs"), _name)
