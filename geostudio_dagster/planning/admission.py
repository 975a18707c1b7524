"""The gate: a request is accepted whole, or refused with one sentence and nothing written."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shapely.errors import ShapelyError
from shapely.geometry import shape
from shapely.validation import explain_validity

from geostudio_dagster.connectors.addresses import UnacceptableAddressError, scene_address
from geostudio_dagster.errors import InvalidRequest, NotFound
from geostudio_dagster.models.bundle import BundleManifest
from geostudio_dagster.planning.chains import pin_chain
from geostudio_dagster.planning.limits import check_wish
from geostudio_dagster.planning.map_tiles import tile_outlines
from geostudio_dagster.planning.own_files import with_own_files
from geostudio_dagster.planning.request import RequestSpec, parse_request
from geostudio_dagster.planning.sources import served_sources, with_source
from geostudio_dagster.planning.webhook import check_webhook
from geostudio_dagster.settings import Settings

if TYPE_CHECKING:
    from geostudio_dagster.catalog import (
        Catalog,
        ModelRecord,
        PinnedProcessor,
        RequestRecord,
        Viewer,
    )

_NAMES_SHOWN = 8
_GLOBE = (-180.0, -90.0, 180.0, 90.0)  # west, south, east, north


@dataclass(frozen=True, slots=True)
class Checked:
    """A request that may be written: what is asked for, of which model, through which chain."""

    spec: RequestSpec
    model: ModelRecord
    chain: tuple[PinnedProcessor, ...]


def admit(
    document: RequestSpec | Mapping[str, Any],
    catalog: Catalog,
    settings: Settings,
    *,
    owner: str,
    viewer: Viewer | None = None,
) -> RequestRecord:
    """Check a request wholly and write it as PENDING; the same again is the same request.

    Args:
        viewer: who asks, and so whose processors may be named; None is the operator.

    Raises:
        InvalidRequest: naming field and remedy; nothing was written.
        Conflict: the id is taken by another request.
    """
    checked = check_request(document, catalog, settings, owner=owner, viewer=viewer)
    return write_request(checked, catalog, owner=owner)


def write_request(
    checked: Checked, catalog: Catalog, *, owner: str, card_id: str | None = None
) -> RequestRecord:
    """Write a request that was checked in full as PENDING.

    Args:
        card_id: the card that the model was asked for by.

    Raises:
        Conflict: the id is taken by another request.
        NotFound: a processor was deleted meanwhile.
    """
    return catalog.create_request(
        request_id=str(checked.spec.id) if checked.spec.id else None,
        spec=checked.spec.model_dump(mode="json", exclude={"id"}),
        model_id=checked.model.id,
        owner=owner,
        processors=checked.chain,
        card_id=card_id,
    )


def check_request(
    document: RequestSpec | Mapping[str, Any],
    catalog: Catalog,
    settings: Settings,
    *,
    owner: str,
    viewer: Viewer | None = None,
    in_full: bool = True,
) -> Checked:
    """Check a request as far as it goes without opening a scene, and write nothing.

    Args:
        in_full: whether limits and what this installation cannot do count, too.

    Raises:
        InvalidRequest: naming field and remedy.
    """
    spec = document if isinstance(document, RequestSpec) else parse_request(document)
    model = _model(spec.model, catalog)
    spec = with_own_files(spec, catalog, owner)
    check_form(spec, settings)
    if in_full:
        check_wish(spec, settings)
        spec = served(spec, model, catalog, settings)
    return Checked(spec, model, tuple(pin_chain(spec.processors, catalog, viewer)))


def check_form(spec: RequestSpec, settings: Settings) -> None:
    """Check that places and dates are such, as far as it goes without opening a scene.

    Raises:
        InvalidRequest: naming field and remedy.
    """
    domain = spec.spatial_domain
    for number, url in enumerate(domain.urls):
        try:
            scene_address(url, settings)
        except UnacceptableAddressError as error:
            field = f"spatial_domain.urls.{number}"
            raise InvalidRequest(field, error.problem, error.remedy) from error
    for number, polygon in enumerate(domain.polygons):
        _check_polygon(f"spatial_domain.polygons.{number}", polygon)
    tile_outlines(domain.tiles)
    if domain.urls:
        _check_dates(spec)
    if spec.webhook is not None:
        check_webhook(spec.webhook, settings)


def _model(reference: str, catalog: Catalog) -> ModelRecord:
    try:
        return catalog.model(reference)
    except NotFound as error:
        names = sorted({record.name for record in catalog.models()})
        if not names:
            remedy = "register one with `geostudio-dagster models add`"
        else:
            close = difflib.get_close_matches(reference.partition("@")[0], names, _NAMES_SHOWN)
            remedy = f"use one of {', '.join(close or names[:_NAMES_SHOWN])}"
        raise InvalidRequest("model", f"there is no model {reference!r}", remedy) from error


def served(
    spec: RequestSpec, model: ModelRecord, catalog: Catalog, settings: Settings
) -> RequestSpec:
    """The request with the data source that its areas, if any, are served from.

    Raises:
        InvalidRequest: no source here serves them.
    """
    if not spec.spatial_domain.areas:
        return spec
    manifest = BundleManifest.model_validate(model.manifest)
    return with_source(spec, manifest, served_sources(catalog, settings))


def _check_dates(spec: RequestSpec) -> None:
    dates, scenes = spec.temporal_domain, len(spec.spatial_domain.urls)
    if len(dates) not in (0, 1, scenes):
        raise InvalidRequest(
            "temporal_domain",
            f"{len(dates)} dates do not fit {scenes} scenes",
            "give one date for all scenes, one for each, or none to read them from the file names",
        )
    for number, value in enumerate(dates):
        if "_" in value:
            raise InvalidRequest(
                f"temporal_domain.{number}",
                f"{value} is a period, but a scene has one date",
                "give one day such as 2024-06-30",
            )


def _check_polygon(field: str, document: Mapping[str, Any]) -> None:
    try:
        geometry = shape(document)
        kind, bounds = geometry.geom_type, geometry.bounds
    except (ShapelyError, AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise InvalidRequest(
            field, "is not a GeoJSON geometry", "give a Polygon or MultiPolygon"
        ) from error
    if kind not in ("Polygon", "MultiPolygon") or geometry.is_empty:
        raise InvalidRequest(
            field,
            f"is {'an empty' if geometry.is_empty else 'a'} {kind}",
            "give a Polygon or MultiPolygon",
        )
    west, south, east, north = bounds
    low = west >= _GLOBE[0] and south >= _GLOBE[1]  # false for NaN, too
    high = east <= _GLOBE[2] and north <= _GLOBE[3]
    if not (low and high):
        raise InvalidRequest(
            field, f"{list(bounds)} is off the globe", "give longitude, latitude in EPSG:4326"
        )
    if not geometry.is_valid:
        raise InvalidRequest(
            field, f"is not valid ({explain_validity(geometry)})", "mend its rings"
        )
