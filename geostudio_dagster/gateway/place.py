"""What every route of the gateway works with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated

from fastapi import Depends, Request

from geostudio_dagster.catalog import Catalog
from geostudio_dagster.gateway.early import layers_of
from geostudio_dagster.gateway.shelf import LayerShelf
from geostudio_dagster.settings import Settings
from geostudio_dagster.storage import LocalStorage


@dataclass(frozen=True)
class GatewayPlace:
    """Settings, catalog, storage and the layers being looked at."""

    settings: Settings
    catalog: Catalog
    storage: LocalStorage
    shelf: LayerShelf

    @classmethod
    def open(cls, settings: Settings) -> GatewayPlace:
        """Open the installation, making its catalog where there is none yet."""
        settings.data_folder.mkdir(parents=True, exist_ok=True)
        catalog = Catalog.open(settings.catalog_url)
        catalog.migrate()
        storage = LocalStorage(settings.storage_root)

        shelf = LayerShelf(partial(layers_of, catalog), storage)
        return cls(settings, catalog, storage, shelf)

    def close(self) -> None:
        """Give the catalog's connections back."""
        self.catalog.close()


def place_of(request: Request) -> GatewayPlace:
    """The application's place, as a dependency of routes."""
    place: GatewayPlace = request.app.state.place
    return place


Place = Annotated[GatewayPlace, Depends(place_of)]
