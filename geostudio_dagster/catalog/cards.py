"""Cards of models: what users see, whether there is a bundle behind it yet or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from uuid import UUID, uuid4, uuid5

from sqlalchemy import ColumnElement, Row, Select, String, bindparam, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from geostudio_dagster.catalog.api_schema import ModelCard
from geostudio_dagster.catalog.card_records import CardRecord
from geostudio_dagster.catalog.database import Database, utc_now
from geostudio_dagster.catalog.pages import Column, Paging, beside_total, like
from geostudio_dagster.catalog.rows import columns
from geostudio_dagster.catalog.schema import Model
from geostudio_dagster.catalog.viewer import Viewer
from geostudio_dagster.errors import NotFound

KIND = "model"
PENDING, READY = "PENDING", "COMPLETED"
SANDBOX = "geofm-sandbox-models"
SANDBOX_ID = str(uuid5(UUID("1d0f6b0e-6f6c-5c55-9d2b-0f6f2f2f4a51"), SANDBOX))
PLATFORM = "geostudio"  # who the cards belong to that come with the platform; nobody's name
NO_CARD = "Model not found"
NO_EDIT = "Missing permissions to edit this record."
NO_DELETE = "Missing permissions to delete this record."
_LONGEST_STEM = 30
_SORTED_BY: Mapping[str, Column] = {
    "created_at": ModelCard.created_at,
    "updated_at": ModelCard.updated_at,
    "display_name": ModelCard.display_name,
    "version": ModelCard.version,
    "status": ModelCard.status,
}


@dataclass(frozen=True, slots=True)
class CardFilter:
    """Which cards to list; None is any. ``internal_name`` may be a part of it."""

    internal_name: str | None = None
    display_name: str | None = None
    status: str | None = None
    latest: bool | None = None

    @property
    def values(self) -> dict[str, Any]:
        """What is asked for, by the names of :data:`_CONDITIONS`."""
        given = {name: value for name in _CONDITIONS if (value := getattr(self, name)) is not None}
        if self.internal_name is not None:
            given["internal_name"] = like(self.internal_name)
        return given


_CONDITIONS: Mapping[str, ColumnElement[bool]] = {
    "internal_name": ModelCard.internal_name.icontains(
        bindparam("internal_name", type_=String), escape="/"
    ),
    "display_name": ModelCard.display_name == bindparam("display_name"),
    "status": ModelCard.status == bindparam("status"),
    "latest": ModelCard.latest == bindparam("latest"),
}
_CARD = [*columns(ModelCard, CardRecord), Model.manifest]


class Cards(Database):
    """The catalog's cards of models, to each viewer those that they may see."""

    def create_card(
        self,
        viewer: Viewer,
        display_name: str,
        details: Mapping[str, Any],
        *,
        version: int = 1,
        sharable: bool = False,
    ) -> CardRecord:
        """A card without a bundle; under a name that the viewer has used already, its next version.

        Args:
            version: of the first card of the name.
        """
        now = utc_now()
        with self._write() as session:
            lock_name(session, f"card {viewer.email} {display_name}")
            newest = _newest_version(session, viewer.email, display_name)
            number = version if newest is None else newest + 1
            _no_longer_latest(session, viewer.email, display_name)
            card_id = str(uuid4())
            row = ModelCard(
                id=card_id,
                display_name=display_name,
                internal_name=internal_name(display_name, number, card_id),
                version=number,
                latest=True,
                sharable=sharable,
                status=PENDING,
                details=dict(details),
                owner=viewer.email,
                created_at=now,
                updated_at=now,
            )
            session.add(row)
            return card_record(row, None)

    def ensure_sandbox(self) -> None:
        """Make the card by which tunes are tried out, once."""
        with self._read() as session:
            if session.get(ModelCard, SANDBOX_ID) is not None:
                return
        now = utc_now()
        row = ModelCard(
            id=SANDBOX_ID,
            display_name=SANDBOX,
            internal_name=SANDBOX,
            version=1,
            latest=True,
            sharable=True,
            status=READY,
            details={"description": "Runs an uploaded tune, named by fine_tuning_id."},
            owner=PLATFORM,
            created_at=now,
            updated_at=now,
        )
        try:
            with self._write() as session:
                session.add(row)
        except IntegrityError:
            return  # another process made it meanwhile

    def card(self, viewer: Viewer, card_id: str) -> CardRecord:
        """A card that the viewer may see.

        Raises:
            NotFound: there is none.
        """
        return _found(self._rows(_one_card(viewer.pattern), card=card_id, **viewer.values))

    def card_named(self, viewer: Viewer, name: str) -> CardRecord:
        """The latest card of a display name (the viewer's own first), or that internal name's.

        Raises:
            NotFound: there is none that the viewer may see.
        """
        return _found(self._rows(_named_card(viewer.pattern), name=name, **viewer.values))

    def cards(
        self, viewer: Viewer, wanted: CardFilter, page: Paging
    ) -> tuple[int, list[CardRecord]]:
        """How many cards match in all, and those on the page.

        ``page.q`` is looked for in names and description.

        Raises:
            InvalidRequest: the page is sorted by an unknown field.
        """
        asked = wanted.values
        query = _page_of_cards(viewer.pattern, frozenset(asked), page.pattern)
        rows = self._rows(query, **viewer.values, **asked, **page.values)
        # Beyond the end there is the total alone.
        cards = [card_record(row, row.manifest) for row in rows if row.id is not None]
        return rows[0].total, cards

    def update_card(
        self, viewer: Viewer, card_id: str, columns: Mapping[str, Any], details: Mapping[str, Any]
    ) -> CardRecord:
        """Change a card of the viewer's.

        Args:
            columns: new values of ``display_name``, ``latest`` and ``sharable``.
            details: new values of what is in ``details``, None included.

        Raises:
            NotFound: there is none, or it is not the viewer's.
        """
        with self._write() as session:
            row = own_card(session, viewer, card_id, NO_EDIT)
            name = columns.get("display_name", row.display_name)
            lock_name(session, f"card {row.owner} {name}")
            if name != row.display_name:
                newest = _newest_version(session, row.owner, name)
                row.version = row.version if newest is None else newest + 1
                row.display_name = name
                if row.latest:
                    _no_longer_latest(session, row.owner, name, but=row.id)
            if columns.get("latest"):
                _no_longer_latest(session, row.owner, name, but=row.id)
            row.latest = columns.get("latest", row.latest)
            row.sharable = columns.get("sharable", row.sharable)
            row.details = {**row.details, **details}
            row.updated_at = utc_now()
            return card_record(row, manifest_of(session, row.model_id))

    def delete_card(self, viewer: Viewer, card_id: str) -> None:
        """Take a card away from all eyes; the version before it is the latest again.

        Raises:
            NotFound: there is none, or it is not the viewer's.
        """
        with self._write() as session:
            row = own_card(session, viewer, card_id, NO_DELETE)
            lock_name(session, f"card {row.owner} {row.display_name}")
            row.deleted_at = row.updated_at = utc_now()
            if not row.latest:
                return
            row.latest = False
            session.flush()
            query = select(ModelCard).where(
                ModelCard.owner == row.owner,
                ModelCard.display_name == row.display_name,
                ModelCard.deleted_at.is_(None),
            )
            before = session.scalar(query.order_by(ModelCard.version.desc()).limit(1))
            if before is not None:
                before.latest = True


def internal_name(display_name: str, version: int, card_id: str) -> str:
    """A name that no other card has, in small letters, digits and hyphens."""
    stem = display_name.lower().replace("_", "-").lstrip("-")[:_LONGEST_STEM]
    return f"{stem or 'model'}-v{version}-{card_id[:8]}"


def card_of_model(session: Session, model: Model) -> None:
    """The card of a bundle that the operator registered, seen by everybody."""
    now = utc_now()
    row = session.get(ModelCard, model.id)
    if row is not None:
        if row.deleted_at is not None:  # registered again
            row.deleted_at, row.updated_at = None, now
        return
    registered = (ModelCard.id == ModelCard.model_id) | (ModelCard.owner == model.owner)
    session.execute(
        update(ModelCard)
        .where(ModelCard.display_name == model.name, registered)
        .values(latest=False)
    )
    session.add(
        ModelCard(
            id=model.id,
            display_name=model.name,
            internal_name=internal_name(model.name, model.version, model.id),
            version=model.version,
            latest=True,
            sharable=True,
            status=READY,
            details={"description": model.manifest.get("description") or ""},
            owner=model.owner,
            model_id=model.id,
            created_at=model.created_at,
            updated_at=now,
        )
    )


def card_record(row: ModelCard | Row[Any], manifest: dict[str, Any] | None) -> CardRecord:
    """A card, with the manifest of its bundle."""
    return CardRecord(
        id=row.id,
        display_name=row.display_name,
        internal_name=row.internal_name,
        version=row.version,
        latest=row.latest,
        sharable=row.sharable,
        status=row.status,
        details=row.details,
        owner=row.owner,
        model_id=row.model_id,
        created_at=row.created_at,
        updated_at=row.updated_at,
        manifest=manifest,
    )


def own_card(session: Session, viewer: Viewer, card_id: str, refusal: str) -> ModelCard:
    """A card that the viewer may change, locked.

    Raises:
        NotFound: there is none that they see; or, in the words of ``refusal``, none of theirs.
    """
    parameters = {"card": card_id, **viewer.values}
    _found(session.connection().execute(_one_card(viewer.pattern), parameters).all())
    query = select(ModelCard).where(
        ModelCard.id == card_id, ModelCard.deleted_at.is_(None), viewer.owns(ModelCard.owner)
    )
    row = session.scalar(query.with_for_update())
    if row is None:
        raise NotFound(refusal)
    return row


def manifest_of(session: Session, model_id: str | None) -> dict[str, Any] | None:
    """The manifest of a bundle, if there is one."""
    if model_id is None:
        return None
    return session.scalar(select(Model.manifest).where(Model.id == model_id))


def lock_name(session: Session, name: str) -> None:
    """Let nobody else count versions of the same name meanwhile; SQLite has one writer anyway."""
    if session.get_bind().dialect.name == "postgresql":
        key = func.hashtextextended(f"geostudio {name}", 0)
        session.execute(select(func.pg_advisory_xact_lock(key)))


def _is_visible(viewer: Viewer) -> ColumnElement[bool]:
    seen = viewer.sees(KIND, owner=ModelCard.owner, artifact_id=ModelCard.id)
    return ModelCard.deleted_at.is_(None) & or_(seen, ModelCard.sharable)


# The statements below are made once for each pattern of viewers, filters and pages.


def _visible(viewer: Viewer) -> Select[Any]:
    query = select(*_CARD).outerjoin(Model, Model.id == ModelCard.model_id)
    return query.where(_is_visible(viewer))


@lru_cache
def _one_card(viewer: Viewer) -> Select[Any]:
    return _visible(viewer).where(ModelCard.id == bindparam("card"))


@lru_cache
def _named_card(viewer: Viewer) -> Select[Any]:
    name = bindparam("name", type_=String)
    named = (ModelCard.display_name == name) & ModelCard.latest
    own = ModelCard.owner == bindparam("viewer", viewer.email)
    order = (own.desc(), ModelCard.created_at.desc(), ModelCard.id)
    query = _visible(viewer).where(or_(named, ModelCard.internal_name == name))
    return query.order_by(*order).limit(1)


@lru_cache(maxsize=500)
def _page_of_cards(viewer: Viewer, asked: frozenset[str], page: Paging) -> Select[Any]:
    matching = select(ModelCard.id).where(_is_visible(viewer))
    matching = matching.where(*(_CONDITIONS[name] for name in sorted(asked)))
    description = ModelCard.details["description"].as_string()
    text = page.contains(ModelCard.display_name, ModelCard.internal_name, description)
    if text is not None:
        matching = matching.where(text)
    order = page.order(_SORTED_BY, ModelCard.id)
    total, rows = beside_total(matching, page, order, ModelCard.id)
    rows = rows.outerjoin(Model, Model.id == ModelCard.model_id)
    return select(total, *_CARD).select_from(rows).order_by(*order)


def _found(rows: Sequence[Row[Any]]) -> CardRecord:
    if not rows:
        raise NotFound(NO_CARD)
    return card_record(rows[0], rows[0].manifest)


def _newest_version(session: Session, owner: str, display_name: str) -> int | None:
    return session.scalar(
        select(func.max(ModelCard.version)).where(
            ModelCard.owner == owner, ModelCard.display_name == display_name
        )
    )


def _no_longer_latest(session: Session, owner: str, display_name: str, but: str = "") -> None:
    session.execute(
        update(ModelCard)
        .where(
            ModelCard.owner == owner, ModelCard.display_name == display_name, ModelCard.id != but
        )
        .values(latest=False)
    )
