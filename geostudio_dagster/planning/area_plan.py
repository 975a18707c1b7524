"""From areas and days to tasks: scenes on shared grids, cut into windows that have data."""

from __future__ import annotations

import datetime as dt
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import product

from geostudio_dagster.catalog import Plan, PlannedTask, Position
from geostudio_dagster.errors import InvalidRequest, TaskError
from geostudio_dagster.models.bundle import BundleManifest
from geostudio_dagster.planning.area_windows import grids_of, projected, windows_of, with_data
from geostudio_dagster.planning.grid import Window
from geostudio_dagster.planning.holdings import (
    Found,
    Period,
    Question,
    find,
    is_clear,
    nearest_days,
    periods_of,
)
from geostudio_dagster.planning.plan import in_shards, steps_with
from geostudio_dagster.planning.recipes import (
    RecipeBand,
    RecipeGranule,
    RecipePixels,
    SceneRecipe,
    scene_address,
)
from geostudio_dagster.planning.request import RequestSpec
from geostudio_dagster.planning.scene_grid import SceneGrid
from geostudio_dagster.raster.footprint import footprint
from geostudio_dagster.settings import Settings
from geostudio_dagster.stac_settings import AssetBand, StacSource

_MOST_SEARCHES = 2000
_SEARCHES_AT_ONCE = 4
_SENTENCES = 20
_REFLECTANCE, _WHITE = 1e-4, 0.3  # how reflectances are usually stored, and how light is white


@dataclass(frozen=True, slots=True)
class AreaPlan:
    """The plan of a request for areas, and how its scenes are made, by number."""

    plan: Plan
    recipes: tuple[SceneRecipe, ...]


def make_area_plan(
    spec: RequestSpec,
    request_id: str,
    manifest: BundleManifest,
    source: StacSource,
    settings: Settings,
    *,
    speed_mpx_s: float | None = None,
    positions: Collection[Position] = (),
) -> AreaPlan:
    """Search a source for a request's areas and days, and turn what is there into tasks.

    Each grid of an area (see :mod:`planning.scene_grid`) is a scene on each solar day that has
    data. A scene's tasks are its windows that meet both the area and a granule: the only one is
    ``<request>-task_<n>``, several are ``<request>-task_<n>_<i>``.

    Args:
        speed_mpx_s: measured prediction speed of the model, Mpx/s; None before its first run.
        positions: where processors of users run in this request.

    Raises:
        InvalidRequest: there is no data, more than allowed, or the source cannot be searched.
    """
    work = _Work(spec, request_id, manifest, source, settings, steps_with(positions))
    grids = grids_of(spec.spatial_domain, manifest, source)
    periods = periods_of(spec.temporal_domain)
    try:
        found = _search(work, grids, periods)
        scenes = list(work.scenes(grids, found))
        if not scenes:
            raise _nothing(work, grids, found, periods)
    except TaskError as error:
        problem = f"{source.label} cannot be searched: {str(error).rstrip('.')}"
        raise InvalidRequest("spatial_domain", problem, "try again later") from error
    tasks = [task for scene in scenes for task in scene.tasks]
    figures = _figures(work, scenes, found)
    plan = in_shards(tasks, spec, manifest, settings, speed_mpx_s=speed_mpx_s, figures=figures)
    return AreaPlan(plan, tuple(scene.recipe for scene in scenes))


@dataclass(frozen=True, slots=True)
class _Scene:
    recipe: SceneRecipe
    tasks: tuple[PlannedTask, ...]


@dataclass(frozen=True)
class _Work:
    """What all scenes of a request share, and what is found to be missing."""

    spec: RequestSpec
    request_id: str
    manifest: BundleManifest
    source: StacSource
    settings: Settings
    steps: tuple[str, ...]
    notes: list[str] = field(default_factory=list)

    @property
    def bands(self) -> dict[str, AssetBand]:
        """Bands of a scene: the model's, and the one that tells what is masked."""
        names = [band.name for band in self.manifest.bands]
        masks = self.spec.masking.band if self.spec.masking else None
        if masks is not None and masks.lower() not in {name.lower() for name in names}:
            names.append(masks)
        found = {name: self.source.asset_of(name) for name in names}
        return {name: place for name, place in found.items() if place is not None}

    @property
    def classes(self) -> frozenset[str]:
        """Those of the bands that hold codes, what masks by among them."""
        masks = self.spec.masking.band.lower() if self.spec.masking else None
        return frozenset(n for n in self.bands if n.lower() == masks or self.source.is_class(n))

    def question(self, grid: SceneGrid) -> Question:
        """What the source is asked of a grid."""
        return Question(self.source, self.bands, grid.area, self.classes)

    def scenes(
        self, grids: Sequence[SceneGrid], found: Sequence[Sequence[Found]]
    ) -> Iterator[_Scene]:
        """One scene a grid and day, as far as there is data."""
        number = tasks = 0
        for grid, here in zip(grids, found, strict=True):
            windows = windows_of(grid, self.spec, self.settings)
            days: dict[dt.date, list[Found]] = defaultdict(list)
            for one in self._usable(here):
                days[one.day].append(one)
            for day in sorted(days):
                scene = self._scene(number, grid, windows, day, days[day])
                if scene is None:
                    continue
                tasks += len(scene.tasks)
                if tasks > self.settings.max_tasks:
                    raise InvalidRequest(
                        "spatial_domain",
                        f"the areas make more than {self.settings.max_tasks} tasks",
                        "ask for fewer days, a smaller area, or a larger task_size",
                    )
                number += 1
                yield scene

    def _usable(self, found: Sequence[Found]) -> list[Found]:
        clear = [one for one in found if is_clear(one.granule, self.spec.maxcc)]
        if len(clear) < len(found):
            self.notes.append(
                f"{len(found) - len(clear)} granules are left out, cloudier than "
                f"{self.spec.maxcc:g} %."
            )
        usable = [one for one in clear if not one.granule.lacks]
        for reason, count in Counter(
            reason for one in clear for reason in one.granule.lacks
        ).most_common():
            self.notes.append(f"{count} granules are left out: {reason}.")
        return usable

    def _scene(
        self,
        number: int,
        grid: SceneGrid,
        windows: Sequence[Window],
        day: dt.date,
        found: Sequence[Found],
    ) -> _Scene | None:
        ordered = sorted(found, key=_preference)
        outlines = [projected(one.outline, grid) for one in ordered]
        whole = (0, 0, grid.width, grid.height)
        parts = list(windows) != [whole]
        margin = self.manifest.patch.size if parts else 0
        kept = with_data(grid, windows, outlines, margin)
        if len(kept) < len(windows):
            share = f"{len(windows) - len(kept)} of {len(windows)} tiles"
            self.notes.append(f"{day}: {share} have no data.")
        if not kept:
            return None
        scene_id = f"{self.request_id}-task_{number}"
        url = scene_address(self.source.connector, self.source.collection_name, str(day), number)
        tasks = {
            f"{scene_id}_{place}" if parts else scene_id: (windows[place], used)
            for place, used in kept.items()
        }
        recipe = self._recipe(grid, str(day), margin, ordered, tasks)
        planned = [
            self._task(name, url, str(day), grid, window if parts else None)
            for name, (window, _) in tasks.items()
        ]
        return _Scene(recipe, tuple(planned))

    def _task(
        self, name: str, url: str, date: str, grid: SceneGrid, window: Window | None
    ) -> PlannedTask:
        shown = window or (0, 0, grid.width, grid.height)
        place = footprint(grid.crs, grid.transform, shown)
        return PlannedTask(
            id=name,
            url=url,
            date=date,
            shard=0,
            window=window,
            scene_size=(grid.width, grid.height),
            footprint=place.geometry if place else None,
            pixels=shown[2] * shown[3],
            steps=self.steps,
        )

    def _recipe(
        self,
        grid: SceneGrid,
        date: str,
        margin: int,
        ordered: Sequence[Found],
        tasks: Mapping[str, tuple[Window, tuple[int, ...]]],
    ) -> SceneRecipe:
        bands, classes = tuple(self.bands), self.classes
        return SceneRecipe(
            source=self.source.label,
            date=date,
            crs=grid.crs,
            transform=grid.transform,
            width=grid.width,
            height=grid.height,
            margin=margin,
            physical=self.source.search.values == "physical",
            stretch=_stretch(self.source, ordered, classes),
            bands=tuple(RecipeBand(name=n, codes=n in classes) for n in bands),
            granules=tuple(_recipe_granule(one, bands) for one in ordered),
            tasks={name: used for name, (_, used) in tasks.items()},
        )


def _stretch(
    source: StacSource, found: Sequence[Found], classes: Collection[str]
) -> tuple[float, float] | None:
    """Numbers that are black and white in pictures: the same for all tiles, so none sticks out.

    Reflectances have the usual ones; of anything else each tile shows its own.
    """
    search = source.search
    if search.stretch is not None:
        return search.stretch
    scales = {
        pixels.scale
        for one in found
        for name, pixels in one.granule.bands.items()
        if name not in classes
    }
    if scales != {_REFLECTANCE}:
        return None
    return (0.0, _WHITE) if search.values == "physical" else (0.0, _WHITE / _REFLECTANCE)


def _recipe_granule(found: Found, bands: Sequence[str]) -> RecipeGranule:
    granule = found.granule
    pixels = tuple(
        RecipePixels(
            href=granule.bands[name].href,
            band=granule.bands[name].band,
            scale=granule.bands[name].scale,
            offset=granule.bands[name].offset,
            nodata=granule.bands[name].nodata,
        )
        for name in bands
    )
    return RecipeGranule(
        id=granule.id,
        moment=granule.moment,
        cloud=granule.cloud,
        link=granule.link,
        pixels=pixels,
    )


def _preference(one: Found) -> tuple[float, dt.datetime, str]:
    """The least cloudy first; what does not tell comes last."""
    granule = one.granule
    cloud = 101.0 if granule.cloud is None else granule.cloud
    return cloud, granule.moment, granule.id


def _search(
    work: _Work, grids: Sequence[SceneGrid], periods: Sequence[Period]
) -> list[list[Found]]:
    """What there is of each grid, in order of the grids."""
    asked = list(product(range(len(grids)), periods))
    if len(asked) > _MOST_SEARCHES:
        raise InvalidRequest(
            "temporal_domain",
            f"takes {len(asked)} searches ({len(grids)} areas, {len(periods)} periods), and "
            f"{_MOST_SEARCHES} are made",
            "give periods instead of days, or fewer areas",
        )
    found: list[list[Found]] = [[] for _ in grids]
    with ThreadPoolExecutor(_SEARCHES_AT_ONCE, thread_name_prefix="search") as pool:
        answers = pool.map(
            lambda pair: find(work.question(grids[pair[0]]), pair[1], work.settings), asked
        )
        for (place, _), here in zip(asked, answers, strict=True):
            found[place] += here
    return found


def _figures(
    work: _Work, scenes: Sequence[_Scene], found: Sequence[Sequence[Found]]
) -> dict[str, object]:
    pixels = sum(task.pixels or 0 for scene in scenes for task in scene.tasks)
    bytes_each = 4 if work.source.search.values == "physical" else 2
    dates = sorted({scene.recipe.date for scene in scenes})
    asked = _days_without(work.spec, dates)
    notes = [*asked, *dict.fromkeys(work.notes)]
    more = [f"And {len(notes) - _SENTENCES} more."] if len(notes) > _SENTENCES else []
    return {
        "input_bytes": pixels * len(work.manifest.bands) * bytes_each,
        "scenes_without_header": 0,
        "dates": dates,
        "granules": len({one.granule.id for here in found for one in here}),
        "missing": [*notes[:_SENTENCES], *more],
    }


def _days_without(spec: RequestSpec, dates: Sequence[str]) -> list[str]:
    """What of the days and periods asked for has nothing at all."""
    missing = []
    for text in spec.temporal_domain:
        first, _, last = text.partition("_")
        if not any(first <= date <= (last or first) for date in dates):
            missing.append(f"{text}: there is no data of these areas.")
    return missing


def _nothing(
    work: _Work,
    grids: Sequence[SceneGrid],
    found: Sequence[Sequence[Found]],
    periods: Sequence[Period],
) -> InvalidRequest:
    """Why there is not a single task, and when there would be one."""
    first, last = periods[0][0], periods[-1][1]
    when = f"on {first}" if first == last else f"from {first} to {last}"
    problem = f"{work.source.label} has no data of these areas {when}"
    if any(found):
        problem += f" that can be used ({' '.join(dict.fromkeys(work.notes)).rstrip('.')})"
    return InvalidRequest("temporal_domain", problem, _advice(work, grids[0], periods))


def _advice(work: _Work, grid: SceneGrid, periods: Sequence[Period]) -> str:
    """When there is data of an area, as far as that is quickly found out."""
    try:
        near = nearest_days(work.question(grid), periods, work.spec.maxcc, work.settings)
    except TaskError:  # the question itself was answered: there is nothing
        return "choose other dates or another source"
    if near:
        return f"the nearest dates are {' and '.join(str(day) for day in near)}"
    return "choose other dates or another source; there is none within 45 days either"
