"""The one resource: an installation, opened when a run or a sensor tick needs it."""

from __future__ import annotations

from typing import Any

import dagster as dg
from pydantic import PrivateAttr

from geostudio_dagster.installation import Installation


class InstallationResource(dg.ConfigurableResource[Any]):
    """Catalog, storage and settings of this installation, from ``GEOSTUDIO_*`` variables."""

    _installation: Installation | None = PrivateAttr(default=None)

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Open the catalog; nothing is opened when definitions load."""
        self._installation = Installation.open()

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        """Give the connections back."""
        if self._installation is not None:
            self._installation.close()
            self._installation = None

    def get(self) -> Installation:
        """The open installation."""
        if self._installation is None:
            self._installation = Installation.open()
        return self._installation
