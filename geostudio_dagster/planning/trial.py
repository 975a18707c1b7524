"""What a request would take, found out without writing anything."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from geostudio_dagster.catalog import Plan
from geostudio_dagster.planning.admission import Checked
from geostudio_dagster.planning.planner import planned
from geostudio_dagster.settings import Settings

if TYPE_CHECKING:
    from geostudio_dagster.installation import Installation

_SAMPLE = 200  # scenes looked at; the figures of more are scaled up
_PATIENCE_S = 10.0
_SUMS = ("tasks", "shards", "patches", "input_bytes", "output_bytes", "scenes_without_header")
_FIGURES = ("mpx", "seconds")


@dataclass(frozen=True, slots=True)
class Trial:
    """A plan that nobody carries out.

    ``sampled`` is how many scenes stand for all, if not all did; ``factor`` is how many each
    stands for. The estimate is of all, the tasks are those of the sample.
    """

    plan: Plan
    sampled: int | None = None
    factor: float = 1.0


def trial_plan(installation: Installation, checked: Checked) -> Trial:
    """Plan a checked request as it would be planned; of very many scenes only a sample.

    Raises:
        InvalidRequest: there are more tasks than allowed, or areas have no data.
    """
    spec = checked.spec
    urls = spec.spatial_domain.urls
    step = max(1, ceil(len(urls) / _SAMPLE))
    if step > 1:
        dates = spec.temporal_domain
        domain = spec.spatial_domain.model_copy(update={"urls": urls[::step]})
        changes = {"spatial_domain": domain, "temporal_domain": dates[::step]}
        spec = spec.model_copy(update=changes)
    plan = planned(
        installation,
        spec,
        str(uuid4()),
        checked.model,
        {link.position for link in checked.chain},
        settings=impatient(installation.settings),
    ).plan
    if step == 1:
        return Trial(plan)
    sampled = len(spec.spatial_domain.urls)
    factor = len(urls) / sampled
    return Trial(replace(plan, estimate=_scaled(plan.estimate, factor)), sampled, factor)


def impatient(settings: Settings) -> Settings:
    """Settings for where somebody waits: a host that is slow to answer counts as silent."""
    patience = min(settings.fetch.timeout_s, _PATIENCE_S)
    fetch = settings.fetch.model_copy(update={"timeout_s": patience, "attempts": 1})
    return settings.model_copy(update={"fetch": fetch})


def _scaled(estimate: dict[str, Any], factor: float) -> dict[str, Any]:
    return (
        estimate
        | {name: ceil(estimate[name] * factor) for name in _SUMS}
        | {name: round(estimate[name] * factor, 3) for name in _FIGURES}
    )
