"""Tunes and models in one list, as GEOStudio's user interface offers them for a request."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel

from geostudio_dagster.catalog.card_records import CardRecord, TuneRecord
from geostudio_dagster.catalog.cards import CardFilter
from geostudio_dagster.catalog.pages import Paging
from geostudio_dagster.catalog.tunes import TuneFilter
from geostudio_dagster.gateway.paging import Envelope
from geostudio_dagster.gateway.place import Place
from geostudio_dagster.gateway.principal import Caller, Principal
from geostudio_dagster.gateway.times import ApiTime

router = APIRouter(tags=["tunes"])

Kind = Literal["Tune", "Model"]
Status = Annotated[str, Query(max_length=50)]


class TuneOrModel(BaseModel):
    """A tune or a model; GEOStudio writes an underscore behind some names."""

    id: str
    name: str
    status: str
    shared: bool
    description: str
    model_type: Kind
    active_: bool = True
    created_by_: str
    created_at_: ApiTime
    updated_at_: ApiTime


@router.get("/tunes-and-models", operation_id="list_tunes_and_models")
def list_both(
    *,
    caller: Caller,
    place: Place,
    kind: Annotated[Kind | None, Query(alias="type")] = None,
    name: Annotated[str | None, Query(max_length=100)] = None,
    shared: bool | None = None,
    status: Annotated[list[Status] | None, Query(max_length=1)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 25,
    skip: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
) -> Envelope[TuneOrModel]:
    """The caller's tunes, then the models that they may use, each the latest first.

    ``shared`` is of tunes; with it, models are left out. One status at a time.
    """
    wanted = status[0] if status else None
    total, found = 0, []
    if kind in (None, "Tune"):
        chosen = TuneFilter(name, wanted, shared)
        total, tunes = place.catalog.tunes(caller.viewer, chosen, Paging(limit, skip))
        found = [_of_tune(tune, caller) for tune in tunes]
    if kind in (None, "Model") and shared is None:
        # The models that fill the page behind the tunes.
        room = limit - len(found)
        page = Paging(max(room, 1), max(skip - total, 0))
        chosen_cards = CardFilter(display_name=name, status=wanted)
        count, cards = place.catalog.cards(caller.viewer, chosen_cards, page)
        total, found = total + count, [*found, *(_of_model(card, caller) for card in cards[:room])]
    return Envelope[TuneOrModel].of(total, found)


def _of_tune(tune: TuneRecord, caller: Principal) -> TuneOrModel:
    return _item(tune, caller, "Tune", name=tune.name, description=tune.description)


def _of_model(card: CardRecord, caller: Principal) -> TuneOrModel:
    told = card.details.get("description") or ""
    return _item(card, caller, "Model", name=card.display_name, description=told)


def _item(
    record: TuneRecord | CardRecord, caller: Principal, kind: Kind, **more: Any
) -> TuneOrModel:
    return TuneOrModel(
        id=record.id,
        status=record.status,
        shared=record.owner != caller.email,
        model_type=kind,
        created_by_=record.owner,
        created_at_=record.created_at,
        updated_at_=record.updated_at,
        **more,
    )
