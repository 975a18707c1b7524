"""Pages of lists: the query parameters that ask for one, and the envelope that it comes in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Generic, TypeVar

from fastapi import Depends, Query
from pydantic import BaseModel, Field

from geostudio_dagster.catalog.pages import Paging

Item = TypeVar("Item")
_MOST = 1000
_FARTHEST = 1_000_000
_LONGEST_TEXT = 200


async def _page(
    limit: Annotated[int, Query(ge=1, le=_MOST, description="Results on a page.")] = 25,
    skip: Annotated[int, Query(ge=0, le=_FARTHEST, description="Results before the page.")] = 0,
    sort: Annotated[
        str,
        Query(pattern="^-?[a-z_]{1,40}$", description="Field; with - the greatest first."),
    ] = "-created_at",
    q: Annotated[
        str | None, Query(max_length=_LONGEST_TEXT, description="Text to look for.")
    ] = None,
) -> Paging:
    return Paging(limit, skip, sort, q)


Page = Annotated[Paging, Depends(_page)]


class Envelope(BaseModel, Generic[Item]):
    """A page of a list: how many there are in all, how many are here, and those."""

    total_records: int = Field(ge=0)
    page_count: int = Field(ge=0, description="Number of results on this page.")
    results: list[Item]

    @classmethod
    def of(cls, total: int, results: Sequence[Item]) -> Envelope[Item]:
        """The page of ``results`` out of ``total``."""
        return cls(total_records=total, page_count=len(results), results=list(results))
