"""One page of a long list."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement
from sqlalchemy.orm import InstrumentedAttribute

from geostudio_dagster.errors import InvalidRequest

Column = InstrumentedAttribute[Any] | ColumnElement[Any]


@dataclass(frozen=True, slots=True)
class Paging:
    """Which rows of a list: at most ``limit`` after ``skip``, in the order of ``sort``.

    ``sort`` is a field's name, with a hyphen before it for the greatest first. ``q`` is a text
    to look for, in what the list says it looks into.
    """

    limit: int = 25
    skip: int = 0
    sort: str = "-created_at"
    q: str | None = None

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
        first, *others = (column.icontains(self.q, autoescape=True) for column in columns)
        for other in others:
            first = first | other
        return first
