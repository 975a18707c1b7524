"""Who looks at the catalog, and what of it that person may see."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Boolean, ColumnElement, String, bindparam, select, true
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from geostudio_dagster.catalog.api_schema import Permission

# What groups share, in the words of the API.
KINDS = (
    "dataset",
    "tune",
    "backbone",
    "model",
    "task_template",
    "inference_run",
    "generic_processor",
)


@dataclass(frozen=True, slots=True)
class Viewer:
    """Somebody who asks: by e-mail address, with the ids of the groups that they belong to.

    A statement that is made for the :attr:`pattern` of viewers can be kept, and is asked for any
    of them with their :attr:`values`.
    """

    email: str
    admin: bool = False
    groups: frozenset[str] = field(default_factory=frozenset)

    @property
    def pattern(self) -> Viewer:
        """The same for all whose statements differ by :attr:`values` only."""
        return Viewer("", self.admin, frozenset({""}) if self.groups else frozenset())

    @property
    def values(self) -> dict[str, Any]:
        """What the bound parameters of :meth:`owns` and :meth:`sees` are."""
        return {"viewer": self.email, "viewer_groups": sorted(self.groups)}

    def owns(self, owner: InstrumentedAttribute[str] | ColumnElement[str]) -> ColumnElement[bool]:
        """Rows that this person may change: their own, or all for an administrator."""
        return true() if self.admin else owner == bindparam("viewer", self.email)

    def sees(
        self,
        kind: str,
        *,
        owner: InstrumentedAttribute[str],
        artifact_id: InstrumentedAttribute[str],
    ) -> ColumnElement[bool]:
        """Rows that this person may read: what they own, and what is shared with their groups.

        Args:
            kind: one of :data:`KINDS`. owner, artifact_id: columns of the table that is read.
        """
        own = self.owns(owner)
        if self.admin or not self.groups:
            return own
        groups = bindparam("viewer_groups", sorted(self.groups), String, expanding=True)
        shared = select(Permission.artifact_id).where(
            Permission.kind == kind, Permission.group_id.in_(groups)
        )
        return own | _Among(artifact_id, shared.scalar_subquery())


class _Among(FunctionElement[bool]):
    """That a column is among the rows of a query.

    IN, but so that PostgreSQL finds the rows by the column's index also where it stands beside an
    OR: there it would read the whole table and ask of each row.
    """

    inherit_cache = True
    type = Boolean()


@compiles(_Among)
def _in(element: _Among, compiler: SQLCompiler, **options: Any) -> str:
    column, rows = element.clauses
    return f"{compiler.process(column, **options)} IN {compiler.process(rows, **options)}"


@compiles(_Among, "postgresql")
def _any_of_array(element: _Among, compiler: SQLCompiler, **options: Any) -> str:
    column, rows = element.clauses
    return f"{compiler.process(column, **options)} = ANY (ARRAY{compiler.process(rows, **options)})"
