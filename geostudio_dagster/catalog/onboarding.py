"""Tunes and cards that are to become registered bundles: who waits, who works, what became of it.

A wish is taken up by a run, whose lease (see :class:`Heartbeats`) shows that it lives. A run
that died leaves the wish to the next one; a wish that is repeated is another generation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple, cast

from sqlalchemy import select
from sqlalchemy.orm import Session

from geostudio_dagster.catalog.api_schema import ModelCard, Tune
from geostudio_dagster.catalog.card_records import OnboardingKind, OnboardingRecord
from geostudio_dagster.catalog.cards import NO_EDIT, own_card
from geostudio_dagster.catalog.database import Database, utc_now
from geostudio_dagster.catalog.schema import RunLease
from geostudio_dagster.catalog.tunes import own_tune
from geostudio_dagster.catalog.viewer import Viewer
from geostudio_dagster.errors import Conflict, LeaseLost, NotFound

Row = Tune | ModelCard
STATE = "onboarding"  # in details: generation, attempts, run_id


class Words(NamedTuple):
    """The statuses of one kind, as GEOStudio's clients know them."""

    waiting: str
    working: str
    ready: str
    failed: str


WORDS: Mapping[OnboardingKind, Words] = {
    "tune": Words("Pending", "In_progress", "Finished", "Failed"),
    "model": Words("DEPLOY_REQUESTED", "DEPLOY_IN_PROGRESS", "COMPLETED", "DEPLOY_FAILED"),
}


class Onboardings(Database):
    """The catalog's wishes for bundles."""

    def request_onboarding(
        self,
        viewer: Viewer,
        kind: OnboardingKind,
        item_id: str,
        *,
        config_url: str | None = None,
        checkpoint_url: str | None = None,
    ) -> OnboardingRecord:
        """Have a tune or a card of the viewer's made into a bundle, from these addresses if given.

        Raises:
            NotFound: it is not the viewer's. Conflict: it is being made just now.
        """
        words = WORDS[kind]
        with self._write() as session:
            owned = own_tune if kind == "tune" else own_card
            row: Row = owned(session, viewer, item_id, NO_EDIT)
            if row.status == words.working:
                raise Conflict(f"It is being made just now ({row.status}); wait until it is done.")
            state = dict(row.details.get(STATE) or {})
            generation = int(state.get("generation", 0)) + 1
            changed = {**row.details, STATE: {"generation": generation, "attempts": 0}}
            if config_url and checkpoint_url:
                changed["addresses"] = {"config": config_url, "checkpoint": checkpoint_url}
            _set(row, words.waiting, changed, None)
            return _record(row, kind)

    def onboarding(self, kind: OnboardingKind, item_id: str) -> OnboardingRecord:
        """One wish.

        Raises:
            NotFound: there is none, or it was deleted.
        """
        table = _TABLES[kind]
        with self._read() as session:
            row = cast("Row | None", session.get(table, item_id))
            if row is None or row.deleted_at is not None:
                raise NotFound(f"There is no {kind} {item_id}.")
            return _record(row, kind)

    def onboardings(self, limit: int) -> list[OnboardingRecord]:
        """Those that wait or are being worked, the oldest first."""
        found: list[tuple[datetime, OnboardingRecord]] = []
        with self._read() as session:
            for kind, table in _TABLES.items():
                words = WORDS[kind]
                query = select(table).where(
                    table.deleted_at.is_(None), table.status.in_((words.waiting, words.working))
                )
                query = query.order_by(table.updated_at, table.id).limit(limit)
                rows = cast("Iterable[Row]", session.scalars(query))
                found += [(row.updated_at, _record(row, kind)) for row in rows]
        found.sort(key=lambda entry: (entry[0], entry[1].id))
        return [record for _, record in found[:limit]]

    def claim_onboarding(
        self, kind: OnboardingKind, item_id: str, run_id: str, now: datetime | None = None
    ) -> OnboardingRecord:
        """Take a wish up, counting the attempt.

        Raises:
            NotFound: it is gone. Conflict: it is over, or another run that lives works it.
        """
        now = now or utc_now()
        words = WORDS[kind]
        with self._write() as session:
            row = _locked(session, kind, item_id)
            state = dict(row.details.get(STATE) or {})
            if row.status == words.working and state.get("run_id") != run_id:
                lease = session.get(RunLease, state.get("run_id"))
                if lease is not None and lease.lease_until > now:
                    raise Conflict(f"Run {state['run_id']} works on it.")
            elif row.status not in (words.waiting, words.working):
                raise Conflict(f"It is {row.status} already.")
            state |= {"run_id": run_id, "attempts": int(state.get("attempts", 0)) + 1}
            _set(row, words.working, {**row.details, STATE: state}, None)
            return _record(row, kind)

    def finish_onboarding(
        self, kind: OnboardingKind, item_id: str, run_id: str, model_id: str
    ) -> None:
        """Note that the bundle is registered.

        Raises:
            NotFound: it was deleted meanwhile. LeaseLost: another run took it over.
        """
        with self._write() as session:
            row = _held(session, kind, item_id, run_id)
            row.model_id = model_id
            _set(row, WORDS[kind].ready, row.details, None)

    def release_onboarding(
        self, kind: OnboardingKind, item_id: str, run_id: str, reason: str
    ) -> None:
        """Leave it to another attempt.

        Raises:
            NotFound: it was deleted meanwhile. LeaseLost: another run took it over.
        """
        with self._write() as session:
            row = _held(session, kind, item_id, run_id)
            _set(row, WORDS[kind].waiting, row.details, reason)

    def fail_onboarding(
        self, kind: OnboardingKind, item_id: str, reason: str, run_id: str | None = None
    ) -> None:
        """Give it up; without a run, whoever worked on it is known to be over.

        Raises:
            NotFound: it was deleted meanwhile. LeaseLost: another run took it over.
        """
        with self._write() as session:
            row = (
                _locked(session, kind, item_id)
                if run_id is None
                else _held(session, kind, item_id, run_id)
            )
            if row.status in (WORDS[kind].waiting, WORDS[kind].working):
                _set(row, WORDS[kind].failed, row.details, reason)

    def link_model(self, viewer: Viewer, card_id: str, model_id: str) -> None:
        """Let a card of the viewer's show a bundle that is registered already.

        Raises:
            NotFound: the card is not the viewer's.
        """
        with self._write() as session:
            row = own_card(session, viewer, card_id, NO_EDIT)
            row.model_id = model_id
            _set(row, WORDS["model"].ready, row.details, None)


_TABLES: Mapping[OnboardingKind, type[Row]] = {"tune": Tune, "model": ModelCard}


def _locked(session: Session, kind: OnboardingKind, item_id: str) -> Row:
    table = _TABLES[kind]
    query = select(table).where(table.id == item_id, table.deleted_at.is_(None))
    row = cast("Row | None", session.scalar(query.with_for_update()))
    if row is None:
        raise NotFound(f"There is no {kind} {item_id}.")
    return row


def _held(session: Session, kind: OnboardingKind, item_id: str, run_id: str) -> Row:
    row = _locked(session, kind, item_id)
    holder = (row.details.get(STATE) or {}).get("run_id")
    if row.status != WORDS[kind].working or holder != run_id:
        raise LeaseLost(f"Another run took the {kind} {item_id} over.")
    return row


def _set(row: Row, status: str, details: Mapping[str, Any], error: str | None) -> None:
    row.status = status
    row.details = {**details, "error": error} if isinstance(row, ModelCard) else dict(details)
    if isinstance(row, Tune):
        row.error = error
    row.updated_at = utc_now()


def _record(row: Row, kind: OnboardingKind) -> OnboardingRecord:
    state = row.details.get(STATE) or {}
    addresses = row.details.get("addresses") or {}
    tune = isinstance(row, Tune)
    options = (row.details.get("train_options") or {}) if tune else row.details
    return OnboardingRecord(
        kind=kind,
        id=row.id,
        bundle_name=row.id if isinstance(row, Tune) else row.internal_name,
        title=row.name if isinstance(row, Tune) else row.display_name,
        description=(
            row.description if isinstance(row, Tune) else row.details.get("description") or ""
        ),
        owner=row.owner,
        status=row.status,
        config_url=addresses.get("config") or (row.config_url if isinstance(row, Tune) else None),
        checkpoint_url=(
            addresses.get("checkpoint") or (row.checkpoint_url if isinstance(row, Tune) else None)
        ),
        options=dict(options),
        generation=int(state.get("generation", 0)),
        attempts=int(state.get("attempts", 0)),
        run_id=state.get("run_id"),
        model_id=row.model_id,
    )
