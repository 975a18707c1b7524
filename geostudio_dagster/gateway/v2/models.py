"""Models: described, listed, changed, deleted, and deployed from configuration and checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, HTTPException, Query

from geostudio_dagster.catalog.card_records import CardRecord, OnboardingRecord
from geostudio_dagster.catalog.cards import PENDING, CardFilter
from geostudio_dagster.errors import Conflict, InvalidRequest, NotFound
from geostudio_dagster.gateway.paging import Envelope, Page
from geostudio_dagster.gateway.place import GatewayPlace, Place
from geostudio_dagster.gateway.principal import Caller, Principal
from geostudio_dagster.gateway.problems import responses
from geostudio_dagster.gateway.v2.masking import check_options
from geostudio_dagster.gateway.v2.model_schemas import (
    Deployed,
    ModelCreateInput,
    ModelGetResponse,
    ModelOnboardingInputSchema,
    ModelUpdateInput,
    model_document,
)
from geostudio_dagster.models.tune_options import read_options
from geostudio_dagster.pipeline.onboarding import check_source, manifest_for

router = APIRouter(prefix="/models", tags=["models"])

NO_FILES = [
    {"msg": "Both model_checkpoint_url and model_configs_url should be provided to deploy a model."}
]
_DEPLOYABLE = (PENDING, "DEPLOY_REQUESTED", "DEPLOY_FAILED", "DEPLOY_ERROR")
_COLUMNS = ("display_name", "latest", "sharable")
BUILT_OF = ("model_input_data_spec", "geoserver_push")  # what a bundle is made from, too


@router.post("", operation_id="create_model", status_code=201)
def create(wish: ModelCreateInput, caller: Caller, place: Place) -> ModelGetResponse:
    """Describe a model; under a display name of the caller's, its next version."""
    details = _details(wish)
    read_options(details)
    check_options(details.get("postprocessing_options") or {}, "postprocessing_options")
    version = int(wish.version or 1)
    card = place.catalog.create_card(
        caller.viewer,
        wish.display_name,
        details,
        version=version,
        sharable=bool(wish.sharable),
    )
    return model_document(card)


async def _filter(
    *,
    internal_name: Annotated[str | None, Query(max_length=200)] = None,
    display_name: Annotated[str | None, Query(max_length=100)] = None,
    status: Annotated[str | None, Query(max_length=50)] = None,
    latest: bool | None = None,
) -> CardFilter:
    return CardFilter(internal_name, display_name, status, latest)


@router.get("", operation_id="list_models")
def list_models(
    wanted: Annotated[CardFilter, Depends(_filter)], page: Page, caller: Caller, place: Place
) -> Envelope[ModelGetResponse]:
    """The caller's models, those that a group shares with them, and those for everybody."""
    total, cards = place.catalog.cards(caller.viewer, wanted, page)
    return Envelope[ModelGetResponse].of(total, [model_document(card) for card in cards])


@router.get("/{model_id}", operation_id="get_model", responses=responses(404))
def get(model_id: UUID, caller: Caller, place: Place) -> ModelGetResponse:
    """One model."""
    return model_document(place.catalog.card(caller.viewer, str(model_id)))


@router.patch(
    "/{model_id}", operation_id="update_model", status_code=201, responses=responses(404, 409)
)
def update(
    model_id: UUID, change: ModelUpdateInput, caller: Caller, place: Place
) -> ModelGetResponse:
    """Change what is given, to false and empty, too. New bands or styles make a new bundle."""
    card = place.catalog.card(caller.viewer, str(model_id))
    columns = {name: value for name in _COLUMNS if (value := getattr(change, name)) is not None}
    details = _details(change)
    read_options(details)
    check_options(details.get("postprocessing_options") or {}, "postprocessing_options")
    rebuilt = _is_deployed(card) and any(
        name in details and details[name] != card.details.get(name) for name in BUILT_OF
    )
    if rebuilt:
        if card.status == "DEPLOY_IN_PROGRESS":
            raise Conflict("The model is being deployed; change it when that is done.")
        check_rebuild(place, card.model_id, {**card.details, **details}, "model", card.id)
    card = place.catalog.update_card(caller.viewer, card.id, columns, details)
    if rebuilt:
        place.launcher.onboarding(place.catalog.request_onboarding(caller.viewer, "model", card.id))
        card = place.catalog.card(caller.viewer, card.id)
    return model_document(card)


@router.delete(
    "/{model_id}", operation_id="delete_model", status_code=204, responses=responses(404)
)
def delete(model_id: UUID, caller: Caller, place: Place) -> None:
    """Take a model away; requests that are under way with it are not disturbed."""
    place.catalog.delete_card(caller.viewer, str(model_id))


@router.post("/{model_id}/deploy", operation_id="deploy_model", responses=responses(404))
def deploy(
    model_id: UUID, wish: ModelOnboardingInputSchema, caller: Caller, place: Place
) -> Deployed:
    """Have the model's files fetched, checked and made ready to run; its status tells how far."""
    card = place.catalog.card(caller.viewer, str(model_id))
    if card.status not in _DEPLOYABLE:
        message = f"Model in state: {card.status} cannot be redeployed. Create a new Model."
        raise HTTPException(422, {"message": message})
    told = card.details.get("model_onboarding_config") or {}
    given = wish.model_dump(exclude_none=True) or told
    config, checkpoint = given.get("model_configs_url"), given.get("model_checkpoint_url")
    if not config and not checkpoint and given.get("fine_tuned_model_id"):
        return _deploy_tune(place, caller, card, given["fine_tuned_model_id"])
    if not config or not checkpoint:
        raise HTTPException(422, NO_FILES)
    check_source(place.installation, config, card.owner, "model_configs_url")
    check_source(place.installation, checkpoint, card.owner, "model_checkpoint_url")
    with _as_state():
        requested = place.catalog.request_onboarding(
            caller.viewer, "model", card.id, config_url=config, checkpoint_url=checkpoint
        )
    place.launcher.onboarding(requested)
    return _deployed(card, requested.status)


def check_rebuild(
    place: GatewayPlace, model_id: str | None, options: dict[str, Any], kind: str, item_id: str
) -> None:
    """See that a bundle can be made from the files of one that is there, with these options.

    Raises:
        InvalidRequest: naming the field.
    """
    if model_id is None:
        return
    bundle = place.installation.bundle(place.catalog.model(model_id))
    if bundle.config_path is None:
        return
    wish = OnboardingRecord(
        kind="tune" if kind == "tune" else "model",
        id=item_id,
        bundle_name=bundle.manifest.name,
        title="",
        description="",
        owner="",
        status="",
        config_url=None,
        checkpoint_url=None,
        options=options,
        generation=0,
        attempts=0,
        run_id=None,
        model_id=model_id,
    )
    manifest_for(bundle.config_path, wish)


def _deploy_tune(
    place: GatewayPlace, caller: Principal, card: CardRecord, tune_id: str
) -> Deployed:
    try:
        tune = place.catalog.tune(caller.viewer, tune_id)
    except NotFound as error:
        raise InvalidRequest("fine_tuned_model_id", "names no tune", "give its id") from error
    if tune.model_id is None:
        raise InvalidRequest(
            "fine_tuned_model_id", f"the tune is {tune.status}", "wait until it is Finished"
        )
    place.catalog.link_model(caller.viewer, card.id, tune.model_id)
    return _deployed(card, place.catalog.card(caller.viewer, card.id).status)


def _deployed(card: CardRecord, status: str) -> Deployed:
    return Deployed(
        id=UUID(card.id),
        internal_name=card.internal_name,
        display_name=card.display_name,
        status=status,
    )


def _is_deployed(card: CardRecord) -> bool:
    """Whether its bundle was made from files that its owner named."""
    return card.model_id is not None and bool(card.details.get("addresses"))


def _details(wish: ModelUpdateInput) -> dict[str, Any]:
    """What was given, without columns; null is "nothing said"."""
    given = wish.model_dump(mode="json", exclude_none=True)
    for name in (*_COLUMNS, "version"):
        given.pop(name, None)
    return given


@contextmanager
def _as_state() -> Iterator[None]:
    try:
        yield
    except Conflict as error:
        raise HTTPException(422, {"message": str(error)}) from error
