"""The answer of a dry run: what would be written, what it would take, what speaks against it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4

from geostudio_dagster.catalog.states import PROCESSOR
from geostudio_dagster.errors import InvalidRequest
from geostudio_dagster.gateway.place import GatewayPlace
from geostudio_dagster.gateway.principal import Principal
from geostudio_dagster.gateway.v2.documents import Document, spatial_domain
from geostudio_dagster.gateway.v2.submission import Wish
from geostudio_dagster.planning.admission import served
from geostudio_dagster.planning.limits import LimitCheck, checks_of_plan, checks_of_wish
from geostudio_dagster.planning.plan import steps_with
from geostudio_dagster.planning.trial import Trial, trial_plan
from geostudio_dagster.settings import LimitSettings

_SECONDS_AN_HOUR = 3600


def trial_document(place: GatewayPlace, caller: Principal, wish: Wish) -> Document:
    """What would become of a request, which has been understood; nothing is written."""
    spec = wish.checked.spec
    checks = list(checks_of_wish(spec, place.settings))
    problems, trial = [], None
    try:
        spec = served(spec, wish.checked.model, place.catalog, place.settings)
        if not any(check.exceeded for check in checks):
            trial = trial_plan(place.installation, replace(wish.checked, spec=spec))
            checks += checks_of_plan(trial.plan, place.settings, area_factor=trial.factor)
    except InvalidRequest as error:
        problems.append(str(error))
    checks += _quota(place, caller)
    problems += [str(check.refusal()) for check in checks if check.exceeded]
    return {
        **_config(caller, wish),
        "plan": _plan(trial, place.settings.limits) if trial else None,
        "area_km2": next((check.asked for check in checks if check.name == "area_km2"), None),
        "limits": [_limit(check) for check in _latest(checks)],
        "admissible": not problems,
        "problems": problems,
        "warnings": list(wish.warnings),
    }


def _config(caller: Principal, wish: Wish) -> Document:
    document = wish.checked.spec.model_dump(mode="json")
    client: Document = document["client"]
    tune = client.get("fine_tuning_id")
    return {
        "spatial_domain": spatial_domain(document),
        "temporal_domain": client.get("temporal_domain") or document["temporal_domain"],
        "model_input_data_spec": client.get("model_input_data_spec"),
        "data_connector_config": client.get("data_connector_config"),
        "geoserver_push": client.get("geoserver_push"),
        "pipeline_steps": client.get("pipeline_steps") or _steps(wish),
        "post_processing": client.get("post_processing"),
        "fine_tuning_id": tune,
        "generic_processor": client.get("generic_processor"),
        "maxcc": client.get("maxcc", 100),
        "model_id": wish.choice.internal_name,
        "model_internal_name": wish.choice.internal_name,
        "tune_id": tune,
        "request_type": "openeo",
        "inference_id": str(uuid4()),
        "description": document["description"] or None,
        "location": document["location"] or None,
        "model_access_url": None,
        "user": caller.email,
    }


def _steps(wish: Wish) -> list[Document]:
    names = steps_with({link.position for link in wish.checked.chain})
    return [
        {
            "status": "WAITING" if number else "READY",
            "process_id": PROCESSOR if name.startswith(PROCESSOR) else name,
            "step_number": number,
        }
        for number, name in enumerate(names)
    ]


def _plan(trial: Trial, limits: LimitSettings) -> Document:
    estimate: dict[str, Any] = trial.plan.estimate
    seconds = float(estimate["seconds"])
    price = limits.cost_per_hour
    figures = ("tasks", "shards", "mpx", "patches", "input_bytes", "output_bytes")
    return {
        **{name: estimate[name] for name in figures},
        "estimated_seconds": seconds,
        "mpx_per_second": estimate["mpx_per_second"],
        "speed_is_measured": estimate["speed_is_measured"],
        "cost": {
            "amount": round(seconds / _SECONDS_AN_HOUR * price, 4),
            "currency": limits.currency,
        }
        if price is not None
        else None,
        "scenes_without_header": estimate["scenes_without_header"],
        "sampled_scenes": trial.sampled,
        "dates": estimate.get("dates"),
        "missing": estimate.get("missing"),
    }


def _quota(place: GatewayPlace, caller: Principal) -> Iterator[LimitCheck]:
    allowed = place.settings.limits.max_live_per_user
    asked = place.catalog.live_requests_of(caller.email) + 1
    yield LimitCheck(
        "live_requests",
        asked,
        allowed,
        "request",
        f"you would have {asked} requests under way, and {allowed} are allowed",
        "wait for one to end, or cancel one",
    )


def _latest(checks: Sequence[LimitCheck]) -> list[LimitCheck]:
    """One check of each name."""
    return list({check.name: check for check in checks}.values())


def _limit(check: LimitCheck) -> Document:
    return {
        "name": check.name,
        "asked": check.asked,
        "allowed": check.allowed,
        "exceeded": check.exceeded,
        "message": f"{check.problem}; {check.remedy}." if check.exceeded else None,
    }
