"""A scene at an http(s) address read where it is, through the guard of the fetcher."""

from __future__ import annotations

import time
from http import HTTPStatus

import httpcore

from geostudio_dagster.connectors.addresses import RemoteScene
from geostudio_dagster.connectors.exchange import TransientError, retrying
from geostudio_dagster.connectors.fetch import (
    answer,
    body,
    range_start,
    too_large,
    total_size,
    version_of,
)
from geostudio_dagster.connectors.guard import Deadline, GuardedPool
from geostudio_dagster.connectors.ranged import CHUNK, RangedFile, safe_name
from geostudio_dagster.errors import TaskError
from geostudio_dagster.settings import FetchSettings

_PATIENCE = 10  # silences that one read may take


class RangesUnsupportedError(Exception):
    """The server can't serve parts of the file, or can't tell that they are of one version."""


def file_name(scene: RemoteScene) -> str:
    """The last part of the scene's address, as a file's name that messages may show."""
    return safe_name(scene.url.path)


class RemoteFile(RangedFile):
    """A file at an http(s) address.

    Raises:
        RangesUnsupportedError: download it instead.
        TaskError: as for :func:`fetch.download`.
    """

    def __init__(self, scene: RemoteScene, settings: FetchSettings) -> None:
        super().__init__(file_name(scene))
        self._scene = scene
        self._settings = settings
        self._deadline = Deadline(time.monotonic())
        self._pool = GuardedPool(settings, self._deadline)
        self._version = ""
        try:
            self._cache[0] = self._patiently(0, CHUNK)
        except BaseException:
            self.close()
            raise

    def __str__(self) -> str:
        return str(self._scene)

    def close(self) -> None:
        """End all connections."""
        self._deadline.at = 0.0  # whoever still waits, waits no longer
        super().close()
        self._pool.close()

    def _patiently(self, offset: int, length: int) -> bytes:
        self._deadline.at = time.monotonic() + _PATIENCE * self._settings.timeout_s
        again = retrying(self._settings.attempts, self._deadline.at)
        return bytes(again(self._fetch, offset, length))

    def _fetch(self, offset: int, length: int) -> bytes:
        headers = {"Range": f"bytes={offset}-{offset + length - 1}"}
        with answer(self._pool, self._scene, self._settings, headers) as response:
            self._check(response, offset)
            end = min(offset + length, self.size)
            data = bytearray()
            for chunk in body(response, self._scene):
                data += chunk
                if len(data) > end - offset:
                    break
        if len(data) != end - offset:
            raise TransientError(f"{self} sent {len(data)} of {end - offset} bytes.")
        return bytes(data)

    def _check(self, response: httpcore.Response, offset: int) -> None:
        """Make sure that a partial answer is what was asked for, of the version that was there."""
        partial = response.status == HTTPStatus.PARTIAL_CONTENT and range_start(response) == offset
        found = total_size(response), version_of(response)
        if not self._version:
            if not (partial and all(found)):
                raise RangesUnsupportedError
            self.size, self._version = found[0] or 0, found[1]
            if self.size > self._settings.max_bytes:
                raise too_large(self._scene, self._settings)
        elif not partial or found != (self.size, self._version):
            raise TaskError(
                "input_changed",
                f"{self} changed while it was read; try again when it is complete.",
                retryable=True,
            )
