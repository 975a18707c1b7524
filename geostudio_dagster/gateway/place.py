"""What every route of the gateway works with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated

from fastapi import Depends, Request

from geostudio_dagster.catalog import Catalog
from geostudio_dagster.gateway.early import layers_of
from geostudio_dagster.gateway.event_hub import EventHub
from geostudio_dagster.gateway.launching import Launcher
from geostudio_dagster.gateway.shelf import LayerShelf
from geostudio_dagster.gateway.tokens import TokenVerifier
from geostudio_dagster.installation import Installation
from geostudio_dagster.settings import Settings
from geostudio_dagster.signing import Signer
from geostudio_dagster.storage import LocalStorage


@dataclass(frozen=True)
class GatewayPlace:
    """Settings, catalog, storage, layers being looked at, what proves who asks, what launches."""

    settings: Settings
    catalog: Catalog
    storage: LocalStorage
    shelf: LayerShelf
    installation: Installation
    signer: Signer
    tokens: TokenVerifier
    launcher: Launcher
    hub: EventHub

    @classmethod
    def open(cls, settings: Settings) -> GatewayPlace:
        """Open the installation, making its catalog where there is none yet.

        Raises:
            Unavailable: the data folder cannot be made, or the catalog does not answer.
        """
        installation = Installation.open(settings)
        catalog, storage = installation.catalog, installation.storage
        catalog.ensure_sandbox()
        return cls(
            settings,
            catalog,
            storage,
            LayerShelf(partial(layers_of, catalog), storage),
            installation,
            Signer.open(settings),
            TokenVerifier(settings.gateway),
            Launcher(installation),
            EventHub(catalog),
        )

    def close(self) -> None:
        """Let what is under way end, and give the catalog's connections back."""
        self.launcher.close()
        self.catalog.close()


async def place_of(request: Request) -> GatewayPlace:
    """The application's place, as a dependency of routes."""
    place: GatewayPlace = request.app.state.place
    return place


Place = Annotated[GatewayPlace, Depends(place_of)]
