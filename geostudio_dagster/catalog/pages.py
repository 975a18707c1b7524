"""One page of a long list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Integer,
    Select,
    String,
    bindparam,
    func,
    select,
    true,
)
from sqlalchemy.orm import InstrumentedAttribute

from geostudio_dagster.errors import InvalidRequest

Column = InstrumentedAttribute[Any] | ColumnElement[Any]
_Columns = TypeVar("_Columns", bound=tuple[Any, ...])


@dataclass(frozen=True, slots=True)
class Paging:
    """Which rows of a list: at most ``limit`` after ``skip``, in the order of ``sort``.

    ``sort`` is a field's name, with a hyphen before it for the greatest first. ``q`` is a text
    to look for, in what the list says it looks into.

    A statement that is made for the :attr:`pattern` of pages can be kept, and is asked for any of
    them with their :attr:`values`.
    """

    limit: int = 25
    skip: int = 0
    sort: str = "-created_at"
    q: str | None = None

    @property
    def pattern(self) -> Paging:
        """The same for all pages whose statements differ by :attr:`values` only."""
        return Paging(sort=self.sort, q="q" if self.q else None)

    @property
    def values(self) -> dict[str, Any]:
        """What the bound parameters of :meth:`cut` and :meth:`contains` are."""
        text = like(self.q or "")
        return {"page_limit": self.limit, "page_skip": self.skip, "page_text": text}

    def cut(self, query: Select[_Columns]) -> Select[_Columns]:
        """The page of an ordered query."""
        limit = bindparam("page_limit", self.limit, Integer)
        return query.limit(limit).offset(bindparam("page_skip", self.skip, Integer))

    def order(self, columns: Mapping[str, Column], tie: Column) -> list[ColumnElement[Any]]:
        """ORDER BY of ``sort``; ``tie`` is a unique column that makes the order whole.

        Raises:
            InvalidRequest: ``sort`` is none of ``columns``.
        """
        name = self.sort.removeprefix("-")
        if name not in columns:
            known = ", ".join(sorted(columns))
            raise InvalidRequest(
                "sort", "is not a field that this list is sorted by", f"use one of {known}"
            )
        if self.sort.startswith("-"):
            return [columns[name].desc(), tie.desc()]
        return [columns[name].asc(), tie.asc()]

    def contains(self, *columns: Column) -> ColumnElement[bool] | None:
        """That one of the columns has ``q`` in it, in any case; None without a ``q``."""
        if not self.q:
            return None
        text = bindparam("page_text", self.values["page_text"], String)
        first, *others = (column.icontains(text, escape="/") for column in columns)
        for other in others:
            first = first | other
        return first


def like(text: str) -> str:
    """A text as a pattern of LIKE that means itself, with ``escape="/"``."""
    return text.replace("/", "//").replace("%", "/%").replace("_", "/_")


def beside_total(
    matching: Select[tuple[str]], page: Paging, order: Sequence[ColumnElement[Any]], key: Column
) -> tuple[ColumnElement[int], FromClause]:
    """How many rows match in all, and a FROM of that beside each row of the page.

    Beyond the end there is the total alone, with NULL in all columns of the table.

    Args:
        matching: ``key`` of all rows that match. key: the table's primary key.
    """
    total = select(func.count().label("total")).select_from(matching.subquery()).subquery()
    # Ids alone first: what is skipped is passed over in an index, without reading its rows.
    ids = page.cut(matching.order_by(*order)).subquery()
    rows = total.outerjoin(ids, true()).outerjoin(key.table, key == ids.c[0])
    return total.c.total, rows
