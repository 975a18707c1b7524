"""Which registered bundle a request is for: by card, by display name, or by tune."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import HTTPException

from geostudio_dagster.catalog import Catalog, Viewer
from geostudio_dagster.catalog.card_records import CardRecord
from geostudio_dagster.catalog.cards import SANDBOX
from geostudio_dagster.errors import InvalidRequest, NotFound
from geostudio_dagster.gateway.v2.inference_schemas import InferenceCreateInput

NO_MODEL = "Model not found. Ensure it exists before retrying."
NO_TUNE = "Tune not found"
NO_TUNE_NAMED = {"msg": "`fine_tuning_id` required to try out experimental model."}
NOT_DEPLOYED = {
    "msg": "Cannot run inference > model missing model_url. Ensure model was deployed successfully."
}
_NOT_USABLE = ("DEPLOY_IN_PROGRESS", "DEPLOY_FAILED", "DEPLOY_ERROR")


@dataclass(frozen=True, slots=True)
class Choice:
    """A model that can be run: its bundle's id, and the card that it was asked for by.

    ``details`` is what the card tells beside: bands, layers, what is masked. ``runs_tune`` says
    whether it is the tune of ``fine_tuning_id``.
    """

    model_id: str
    card_id: str
    internal_name: str
    display_name: str
    details: Mapping[str, Any]
    runs_tune: bool


def choose_model(catalog: Catalog, viewer: Viewer, wish: InferenceCreateInput) -> Choice:
    """The model of a request; a tune alone is tried out with the sandbox.

    Raises:
        HTTPException: 404, there is none that the viewer may use; 422, it is not ready.
        InvalidRequest: none is named.
    """
    card = _card(catalog, viewer, wish)
    runs_tune = "sandbox" in card.internal_name and card.model_id is None
    if runs_tune:
        model_id = _of_tune(catalog, viewer, wish.fine_tuning_id)
    elif card.status in _NOT_USABLE:
        raise HTTPException(422, _not_usable("Model", card.status))
    elif card.model_id is None:
        raise HTTPException(422, NOT_DEPLOYED)
    else:
        model_id = card.model_id
        _refuse_other_tune(catalog, viewer, wish.fine_tuning_id, model_id)
    return Choice(model_id, card.id, card.internal_name, card.display_name, card.details, runs_tune)


def _card(catalog: Catalog, viewer: Viewer, wish: InferenceCreateInput) -> CardRecord:
    try:
        if wish.model_id is not None:
            return catalog.card(viewer, str(wish.model_id))
        name = wish.model_display_name or (SANDBOX if wish.fine_tuning_id else None)
        if name is None:
            raise InvalidRequest(
                "model_id",
                "is missing",
                "give model_id or model_display_name of a model, or fine_tuning_id of a tune",
            )
        return catalog.card_named(viewer, name)
    except NotFound as error:
        raise HTTPException(404, NO_MODEL) from error


def _of_tune(catalog: Catalog, viewer: Viewer, tune_id: str | None) -> str:
    if not tune_id:
        raise HTTPException(422, NO_TUNE_NAMED)
    try:
        tune = catalog.tune(viewer, tune_id)
    except NotFound as error:
        raise HTTPException(404, NO_TUNE) from error
    if tune.model_id is None:
        raise HTTPException(422, _not_usable("Tune", tune.status))
    return tune.model_id


def _refuse_other_tune(
    catalog: Catalog, viewer: Viewer, tune_id: str | None, model_id: str
) -> None:
    """Refuse a tune beside a model that is not made of it: only one of them can be run."""
    if not tune_id:
        return
    try:
        tune = catalog.tune(viewer, tune_id)
    except NotFound:
        return  # a name that is kept; it is told that the model is what runs
    if tune.model_id != model_id:
        raise InvalidRequest(
            "fine_tuning_id",
            "names a tune that the model which is named beside it is not made of",
            f"leave out one of them, or name the model {SANDBOX} to run the tune",
        )


def _not_usable(what: str, status: str) -> dict[str, str]:
    return {"msg": f"{what} in state: {status} cannot be used for inference."}
