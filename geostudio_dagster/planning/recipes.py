"""What a scene of an area is made of: written by the plan, followed by stage ``tiles``.

A scene is one grid on one day. Its tasks are windows of it, each of which brings the pixels that it
needs; so the model's patches lie on one grid, and the tasks' predictions join without seams.
"""

from __future__ import annotations

import datetime as dt
from typing import Annotated
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field

from geostudio_dagster.storage import request_key

SCHEME = "stac"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RecipeBand(_Strict):
    """A band of the scene; ``codes`` are never interpolated."""

    name: str
    codes: bool = False


class RecipePixels(_Strict):
    """Where a granule has a band: see :class:`connectors.stac_items.BandSource`."""

    href: str
    band: int = Field(ge=1)
    scale: float | None = None
    offset: float = 0.0
    nodata: Annotated[float, Field(allow_inf_nan=True)] | None = None


class RecipeGranule(_Strict):
    """An item of the source; ``pixels`` has one entry a band of the recipe."""

    id: str
    moment: dt.datetime
    cloud: float | None
    link: str | None
    pixels: tuple[RecipePixels, ...]


class SceneRecipe(_Strict):
    """One scene.

    Attributes:
        source: connector and collection, as people read it. date: the solar day.
        crs, transform, width, height: its grid, see :class:`planning.scene_grid.SceneGrid`.
        margin: pixels around a task's window that it needs, too.
        physical: whether pixels are scaled to quantities, float32.
        granules: the least cloudy first, which is used where it has data.
        tasks: for each task's id the granules (by place) that meet its window and margin.
    """

    source: str
    date: str
    crs: str
    transform: tuple[float, float, float, float, float, float]
    width: int
    height: int
    margin: int
    physical: bool
    stretch: tuple[float, float] | None
    bands: tuple[RecipeBand, ...]
    granules: tuple[RecipeGranule, ...]
    tasks: dict[str, tuple[int, ...]]


def scene_address(connector: str, collection: str, date: str, number: int) -> str:
    """How a scene of an area is named where others have the address of a file."""
    return f"{SCHEME}://{quote(connector)}/{quote(collection, safe='')}/{date}/{number}"


def is_scene_address(url: str) -> bool:
    """Whether a task's scene is one of an area."""
    return url.startswith(f"{SCHEME}://")


def recipe_key(request_id: str, number: int) -> str:
    """Storage key of the recipe of a request's scene."""
    return request_key(request_id, f"recipes/{number}.json")


def number_of(url: str) -> int:
    """A scene's number, by its address."""
    return int(url.rpartition("/")[2])
