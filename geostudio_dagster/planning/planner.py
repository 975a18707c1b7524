"""The plan of a request, whether it names scenes or areas: the same for a trial and in earnest."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from geostudio_dagster.catalog import ModelRecord, Position
from geostudio_dagster.planning.area_plan import AreaPlan, make_area_plan
from geostudio_dagster.planning.plan import make_plan
from geostudio_dagster.planning.request import RequestSpec
from geostudio_dagster.planning.sources import served_sources, source_of
from geostudio_dagster.settings import Settings

if TYPE_CHECKING:
    from geostudio_dagster.installation import Installation


def planned(
    installation: Installation,
    spec: RequestSpec,
    request_id: str,
    model: ModelRecord,
    positions: Collection[Position],
    *,
    settings: Settings | None = None,
) -> AreaPlan:
    """Plan a request; nothing is written.

    Args:
        positions: where processors of users run in it. settings: instead of the installation's.

    Raises:
        InvalidRequest: it cannot be planned.
    """
    settings = settings or installation.settings
    manifest = installation.bundle(model).manifest
    speed = installation.catalog.prediction_speed(model.id)
    if spec.spatial_domain.urls:
        plan = make_plan(spec, request_id, manifest, settings, speed, positions=positions)
        return AreaPlan(plan, ())
    source = source_of(spec, manifest, served_sources(installation.catalog, settings))
    return make_area_plan(
        spec, request_id, manifest, source, settings, speed_mpx_s=speed, positions=positions
    )
