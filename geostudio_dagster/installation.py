"""One installation: its settings, its catalog and its storage, opened together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from sqlalchemy import make_url
from sqlalchemy.exc import OperationalError

from geostudio_dagster.catalog import ArtifactRecord, Catalog, ModelRecord
from geostudio_dagster.errors import Unavailable
from geostudio_dagster.models.bundle import Bundle, load_bundle
from geostudio_dagster.settings import Settings, read_settings
from geostudio_dagster.storage import LocalStorage


@dataclass(frozen=True)
class Installation:
    """What every door and every stage works with. Use as a context manager to close it."""

    settings: Settings
    catalog: Catalog
    storage: LocalStorage

    @classmethod
    def open(cls, settings: Settings | None = None) -> Installation:
        """Open (and, the first time, create) the installation that ``settings`` describe.

        Raises:
            InvalidRequest: the environment holds a setting that is wrong.
            Unavailable: the data folder cannot be made, or the catalog does not answer.
        """
        settings = settings or read_settings()
        try:
            settings.data_folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable(
                f"The data folder {settings.data_folder} cannot be made ({error.strerror}); "
                "name another with GEOSTUDIO_DATA_FOLDER."
            ) from error
        catalog = Catalog.open(settings.catalog_url)
        try:
            catalog.migrate()
        except OperationalError as error:
            catalog.close()
            place = make_url(settings.catalog_url).render_as_string(hide_password=True)
            raise Unavailable(
                f"The catalog at {place} does not answer ({str(error.orig).strip()}); start it, "
                "or correct GEOSTUDIO_DATABASE_URL."
            ) from error
        return cls(settings, catalog, LocalStorage(settings.storage_root))

    def close(self) -> None:
        """Give the catalog's connections back."""
        self.catalog.close()

    def __enter__(self) -> Installation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @cached_property
    def _bundles(self) -> dict[str, Bundle]:
        return {}

    def bundle(self, model: ModelRecord) -> Bundle:
        """The bundle of a registered model, read once per process."""
        if model.digest not in self._bundles:
            self._bundles[model.digest] = load_bundle(Path(model.uri))
        return self._bundles[model.digest]

    def path_of(self, artifact: ArtifactRecord) -> Path:
        """Where an artifact's file lies on this machine, in storage or in place."""
        if artifact.key.startswith("file:"):
            return Path(url2pathname(urlsplit(artifact.key).path))
        return self.storage.path(artifact.key)

    def uri_of(self, artifact: ArtifactRecord) -> str:
        """An artifact's address."""
        return artifact.key if "://" in artifact.key else self.storage.uri(artifact.key)
