"""A request of the API, checked wholly, written, and handed on to be worked at once."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from uuid import UUID

from fastapi import HTTPException

from geostudio_dagster.catalog import RequestRecord
from geostudio_dagster.errors import NotFound
from geostudio_dagster.gateway.place import GatewayPlace
from geostudio_dagster.gateway.principal import Principal
from geostudio_dagster.gateway.v2.inference_schemas import InferenceCreateInput
from geostudio_dagster.gateway.v2.model_choice import Choice, choose_model
from geostudio_dagster.gateway.v2.translation import refuse_busy, request_document
from geostudio_dagster.planning.admission import Checked, check_request, write_request
from geostudio_dagster.planning.limits import check_plan
from geostudio_dagster.planning.request import parse_request
from geostudio_dagster.planning.sources import served_sources
from geostudio_dagster.planning.trial import trial_plan

NO_PROCESSOR = "Generic Processor component not found"
# So few scenes are looked at before the request is accepted, where a limit depends on them.
_LOOKED_AT = 100
_PROCESSOR_FIELD = re.compile(r"^processors\.(\d+)\.processor$")


@dataclass(frozen=True, slots=True)
class Wish:
    """A request that was understood: the platform's own form of it, and the model it is for."""

    checked: Checked
    choice: Choice
    warnings: tuple[str, ...]


def understand(
    place: GatewayPlace,
    caller: Principal,
    wish: InferenceCreateInput,
    *,
    in_full: bool = True,
    brought: Collection[str] = (),
) -> Wish:
    """Check all of a request, writing nothing.

    Args:
        in_full: whether limits and what this installation cannot do count, too.
        brought: fields of the wish that its tune told, not who sent it.

    Raises:
        HTTPException: 404, no such model or processor; 422, a model that cannot be used.
        InvalidRequest: naming field and remedy.
    """
    choice = choose_model(place.catalog, caller.viewer, wish)
    _check_processor(place, caller, wish.generic_processor_id)
    areas = not wish.spatial_domain.urls
    sources = served_sources(place.catalog, place.settings) if areas else ()
    document, warnings = request_document(wish, choice, brought, sources)
    checked = check_request(
        parse_request(document),
        place.catalog,
        place.settings,
        owner=caller.email,
        viewer=caller.viewer,
        in_full=in_full,
    )
    return Wish(checked, choice, tuple(warnings))


def submit(
    place: GatewayPlace,
    caller: Principal,
    wish: InferenceCreateInput,
    brought: Collection[str] = (),
) -> RequestRecord:
    """Write a request and have it worked.

    Args:
        brought: fields of the wish that its tune told, not who sent it.

    Raises:
        HTTPException: as for :func:`understand`; 429, too many requests are under way.
        InvalidRequest: naming field and remedy; nothing was written.
    """
    understood = understand(place, caller, wish, brought=brought)
    limits = place.settings.limits
    if limits.max_live_per_user is not None:
        refuse_busy(place.catalog.live_requests_of(caller.email), limits.max_live_per_user)
    scenes = len(understood.checked.spec.spatial_domain.urls)
    # Areas are searched when they are planned: that can take longer than somebody waits.
    if (limits.max_mpx or limits.max_area_km2) and 0 < scenes <= _LOOKED_AT:
        check_plan(trial_plan(place.installation, understood.checked).plan, place.settings)
    record = write_request(
        understood.checked,
        place.catalog,
        owner=caller.email,
        card_id=understood.choice.card_id,
    )
    place.launcher.submitted(record.id)
    return record


def _check_processor(place: GatewayPlace, caller: Principal, processor_id: UUID | None) -> None:
    if processor_id is None:
        return
    try:
        place.catalog.processor(str(processor_id), caller.viewer)
    except NotFound as error:
        raise HTTPException(404, NO_PROCESSOR) from error
