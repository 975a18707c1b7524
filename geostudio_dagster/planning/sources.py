"""Which data source an area is served from, and whether it has what a model needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from geostudio_dagster.connectors.addresses import (
    UnacceptableAddressError,
    http_url,
    refuse_closed_number,
)
from geostudio_dagster.connectors.collections import COLLECTIONS
from geostudio_dagster.errors import InvalidRequest
from geostudio_dagster.models.bundle import BundleManifest
from geostudio_dagster.planning.request import RequestSpec, SourceUse
from geostudio_dagster.settings import Settings
from geostudio_dagster.stac_settings import StacSearch, StacSource

if TYPE_CHECKING:
    from geostudio_dagster.catalog import Catalog

_NAMES_SHOWN = 8


def served_sources(catalog: Catalog, settings: Settings) -> tuple[StacSource, ...]:
    """The sources that requests for areas may name: of the settings, and of administrators.

    Of two for one connector and collection the settings' is used, else the older one.
    """
    found: dict[tuple[str, str], StacSource] = {}
    for source in (*settings.stac, *_described(catalog)):
        found.setdefault((source.connector, source.collection_name), _completed(source))
    return tuple(source for source in found.values() if source.resolution_m is not None)


def check_search(document: object, settings: Settings) -> StacSearch:
    """Check how a source is to be searched.

    Raises:
        InvalidRequest: naming field and remedy.
    """
    try:
        search = StacSearch.model_validate(document)
        refuse_closed_number(http_url(search.url).host, search.url, settings)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        field = ".".join(("search", *map(str, first["loc"])))
        raise InvalidRequest(field, str(first["msg"]), "correct the value") from error
    except UnacceptableAddressError as error:
        raise InvalidRequest("search.url", error.problem, error.remedy) from error
    return search


def says_how_to_search(document: Mapping[str, Any]) -> bool:
    """Whether a described source has a search of ours, not only a template of GEOStudio's."""
    search = document.get("search")
    return isinstance(search, Mapping) and search.get("type") == "stac"


def with_source(
    spec: RequestSpec, manifest: BundleManifest, sources: tuple[StacSource, ...]
) -> RequestSpec:
    """The request with its source named, where it is for areas.

    Raises:
        InvalidRequest: no source serves it, or it cannot be worked for areas.
    """
    if not spec.spatial_domain.areas:
        return spec
    source = source_of(spec, manifest, sources)
    use = SourceUse(connector=source.connector, collection=source.collection_name)
    return spec.model_copy(update={"source": use})


def source_of(
    spec: RequestSpec, manifest: BundleManifest, sources: tuple[StacSource, ...]
) -> StacSource:
    """The source of a request for areas: the one that it names, else the only one that fits.

    Raises:
        InvalidRequest: there is none, or it lacks bands.
    """
    area = spec.spatial_domain.areas[0]
    if spec.spatial_domain.urls:
        problem = "stands beside urls, and a request has scenes or areas, not both"
        raise InvalidRequest(f"spatial_domain.{area}", problem, "send two requests")
    if not sources:
        raise InvalidRequest(
            f"spatial_domain.{area}",
            "this installation has no data source for areas",
            "give the scenes themselves in spatial_domain.urls, or have a STAC API described",
        )
    if not spec.temporal_domain:
        raise InvalidRequest(
            "temporal_domain", "is empty", "give days or periods, such as 2024-06-01_2024-06-30"
        )
    _check_model(manifest)
    if spec.source is None:
        return _only_one(spec, manifest, sources)
    source = _named(spec.source, sources)
    lacking = _lacking(spec, manifest, source)
    if lacking:
        raise InvalidRequest(
            "source",
            f"{source.label} lacks {', '.join(lacking[:_NAMES_SHOWN])}, which the request needs "
            f"(it has {', '.join(source.band_names)})",
            "name another source, or have its search.assets name these bands",
        )
    return source


def _check_model(manifest: BundleManifest) -> None:
    if manifest.dates > 1:
        raise InvalidRequest(
            "model",
            f"{manifest.name} takes {manifest.dates} dates a sample, which areas do not give",
            "use a model of one date",
        )
    if len(manifest.modalities) > 1:
        raise InvalidRequest(
            "model",
            f"{manifest.name} takes {', '.join(manifest.modalities)} together, and areas come "
            "from one source",
            "use a model of one modality",
        )


def _only_one(
    spec: RequestSpec, manifest: BundleManifest, sources: tuple[StacSource, ...]
) -> StacSource:
    fitting = [source for source in sources if not _lacking(spec, manifest, source)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        problem = "is not named, and several have the bands that the request needs"
    else:
        problem = f"is missing: none has {', '.join(_needed(spec, manifest))}"
    raise InvalidRequest("source", problem, f"name one of {_names(fitting or sources)}")


def _named(use: SourceUse, sources: tuple[StacSource, ...]) -> StacSource:
    for source in sources:
        if (source.connector, source.collection_name) == (use.connector, use.collection):
            return source
    raise InvalidRequest(
        "source",
        f"{use.connector} {use.collection} is not searched by this installation",
        f"use {_names(sources)}",
    )


def _needed(spec: RequestSpec, manifest: BundleManifest) -> list[str]:
    names = [band.name for band in manifest.bands]
    if spec.masking is not None and spec.masking.band.lower() not in {n.lower() for n in names}:
        names.append(spec.masking.band)
    return names


def _lacking(spec: RequestSpec, manifest: BundleManifest, source: StacSource) -> list[str]:
    return [name for name in _needed(spec, manifest) if source.asset_of(name) is None]


def _names(sources: tuple[StacSource, ...] | list[StacSource]) -> str:
    return ", ".join(source.label for source in sources[:_NAMES_SHOWN])


def _described(catalog: Catalog) -> Iterator[StacSource]:
    for record in catalog.sources_for_all():
        if not says_how_to_search(record.document):
            continue
        names = {"connector": record.connector, "collection_name": record.collection}
        try:
            yield StacSource.model_validate({**_listed(record.document), **names})
        except ValidationError:
            continue  # it was described before this was checked


def _listed(document: Mapping[str, Any]) -> dict[str, Any]:
    """Bands as a list, which clients may also send as an object by name."""
    bands = document.get("bands")
    if isinstance(bands, Mapping):
        bands = [
            {"band_name": name, **(band if isinstance(band, Mapping) else {})}
            for name, band in bands.items()
        ]
    return {**document, "bands": bands or ()}


def _completed(source: StacSource) -> StacSource:
    """The source with the bands that are known of its collection, where it names none."""
    for entry in COLLECTIONS:
        if (entry["connector"], entry["collection_name"]) == (
            source.connector,
            source.collection_name,
        ):
            known = {
                name: entry[name]
                for name in ("bands", "resolution_m", "modality_tag", "rgb_bands", "cloud_masking")
                if not getattr(source, name)
            }
            return source.model_copy(update=known)
    return source
