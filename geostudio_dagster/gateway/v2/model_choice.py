"""Which registered bundle a request is for: by card, by display name, or by tune."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import HTTPException

from geostudio_dagster.catalog import Catalog, Viewer
from geostudio_dagster.errors import InvalidRequest, NotFound
from geostudio_dagster.gateway.v2.inference_schemas import InferenceCreateInput

NO_MODEL = "Model not found. Ensure it exists before retrying."


@dataclass(frozen=True, slots=True)
class Choice:
    """A model that can be run: its bundle's id, and the card that it was asked for by."""

    model_id: str
    card_id: str
    internal_name: str
    display_name: str


def choose_model(catalog: Catalog, viewer: Viewer, wish: InferenceCreateInput) -> Choice:
    """The model of a request.

    Raises:
        HTTPException: 404, there is none that the viewer may use; 422, it is not ready.
        InvalidRequest: none is named.
    """
    if wish.model_id is None and not wish.model_display_name:
        raise InvalidRequest(
            "model_id", "is missing", "give model_id or model_display_name of a registered model"
        )
    reference = str(wish.model_id) if wish.model_id else str(wish.model_display_name)
    try:
        model = catalog.model(reference)
    except NotFound as error:
        raise HTTPException(404, NO_MODEL) from error
    return Choice(model.id, model.id, model.name, model.name)
