"""What a request would take, beside what this installation allows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from geostudio_dagster.catalog import Plan
from geostudio_dagster.errors import InvalidRequest
from geostudio_dagster.planning.area import area_km2
from geostudio_dagster.planning.map_tiles import tile_outlines
from geostudio_dagster.planning.request import RequestSpec
from geostudio_dagster.settings import Settings


@dataclass(frozen=True, slots=True)
class LimitCheck:
    """One figure of a request; ``allowed`` is None where nothing limits it."""

    name: str
    asked: float
    allowed: float | None
    field: str
    problem: str
    remedy: str

    @property
    def exceeded(self) -> bool:
        """Whether more is asked for than allowed."""
        return self.allowed is not None and self.asked > self.allowed

    def refusal(self) -> InvalidRequest:
        """What the user reads."""
        return InvalidRequest(self.field, self.problem, self.remedy)


def check_wish(spec: RequestSpec, settings: Settings) -> None:
    """See that a request is within the limits that can be known without opening a scene.

    Raises:
        InvalidRequest: with the figure and the limit.
    """
    _refuse_excess(checks_of_wish(spec, settings))


def check_plan(plan: Plan, settings: Settings) -> None:
    """See that a planned request is within the limits.

    Raises:
        InvalidRequest: with the figure and the limit.
    """
    _refuse_excess(_sizes(plan, settings))
    if settings.limits.max_area_km2 is not None:  # to find it takes long for many scenes
        _refuse_excess([_area_of(plan, settings)])


def _refuse_excess(checks: Iterable[LimitCheck]) -> None:
    for check in checks:
        if check.exceeded:
            raise check.refusal()


def checks_of_wish(spec: RequestSpec, settings: Settings) -> Iterator[LimitCheck]:
    """The figures that the request itself tells: its scenes and the area of its areas."""
    domain, limits = spec.spatial_domain, settings.limits
    scenes, most = len(domain.urls), min(limits.max_urls, settings.max_tasks)
    yield LimitCheck(
        "urls",
        scenes,
        most,
        "spatial_domain.urls",
        f"{scenes} scenes are more than the {most} tasks allowed",
        "split the request",
    )
    if domain.areas:
        covered = area_km2(domain.bbox, [*domain.polygons, *tile_outlines(domain.tiles)])
        yield _area(covered, settings, f"spatial_domain.{domain.areas[0]}")


def checks_of_plan(
    plan: Plan, settings: Settings, *, area_factor: float = 1.0
) -> Iterator[LimitCheck]:
    """The figures that only the scenes' headers tell.

    Args:
        area_factor: what to multiply the area by, where the plan is of a sample.
    """
    yield from _sizes(plan, settings)
    yield _area_of(plan, settings, area_factor)


def _sizes(plan: Plan, settings: Settings) -> Iterator[LimitCheck]:
    tasks = plan.estimate["tasks"]
    of_areas = "dates" in plan.estimate
    field = "spatial_domain" if of_areas else "spatial_domain.urls"
    what, fewer = ("areas", "days or areas") if of_areas else ("scenes", "scenes")
    yield LimitCheck(
        "tasks",
        tasks,
        settings.max_tasks,
        field,
        f"the {what} make {tasks} tasks, and {settings.max_tasks} are allowed",
        f"send fewer {fewer} a request, or a larger task_size",
    )
    mpx, most = plan.estimate["mpx"], settings.limits.max_mpx
    yield LimitCheck(
        "mpx",
        mpx,
        most,
        field,
        f"the {what} have {mpx:.2f} Mpx, and {most or 0:.2f} Mpx are allowed",
        f"send fewer or smaller {fewer} a request",
    )


def _area_of(plan: Plan, settings: Settings, factor: float = 1.0) -> LimitCheck:
    """Square kilometres under the scenes of a plan, as far as their place is known."""
    covered = area_km2(geometries=[task.footprint for task in plan.tasks if task.footprint])
    return _area(covered * factor, settings, "spatial_domain.urls")


def _area(square_km: float, settings: Settings, field: str) -> LimitCheck:
    most = settings.limits.max_area_km2
    return LimitCheck(
        "area_km2",
        round(square_km, 5),
        most,
        field,
        f"Inference area ({square_km:.2f} km²) exceeds the maximum allowed area of "
        f"{most or 0:.2f} km²",
        "reduce the spatial extent of your inference request",
    )
