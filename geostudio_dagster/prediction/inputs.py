"""Scenes as a person at a terminal names them: paths, http(s) URLs, ``s3://`` addresses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import rasterio

from geostudio_dagster.connectors.addresses import (
    RemoteScene,
    UnacceptableAddressError,
    scene_address,
)
from geostudio_dagster.connectors.fetch import download
from geostudio_dagster.connectors.header import check_scene
from geostudio_dagster.errors import InvalidRequest
from geostudio_dagster.settings import Settings

_S3 = "s3://"
_REMOTE = re.compile(r"https?://", re.IGNORECASE)
_UNUSUAL = re.compile(r"[^\w.-]+")


def readable(inputs: Sequence[str], scratch: Path) -> list[Path | str]:
    """What the engine can open for each input, in their order.

    A path stays as it is. An http(s) URL is downloaded into ``scratch`` by the guarded fetcher
    of the service, with its limits. ``s3://bucket/key`` is read in place, block by block, through
    GDAL, with the credentials that GDAL finds (``AWS_PROFILE``, ``AWS_NO_SIGN_REQUEST``, ...).

    Raises:
        InvalidRequest: no such file, or another kind of address.
        TaskError: as for :func:`download` and :func:`check_scene`.
    """
    # First those that cost nothing to check: a wrong path is told before a long download.
    found = {text: _in_place(text) for text in inputs if not _REMOTE.match(text)}
    for number, text in enumerate(inputs):
        if text not in found:
            found[text] = _downloaded(text, scratch / f"input-{number}")
    return [found[text] for text in inputs]


def reading() -> AbstractContextManager[object]:
    """GDAL's settings for reading in place: no look for side files in a bucket."""
    environment: AbstractContextManager[object] = rasterio.Env(
        GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"
    )
    return environment


def _in_place(text: str) -> Path | str:
    if text.startswith(_S3):
        bucket, _, key = text.removeprefix(_S3).partition("/")
        if not bucket or not key:
            raise InvalidRequest("input", f"{text} names no object", "write s3://bucket/key.tif")
        return f"/vsis3/{bucket}/{key}"
    if "://" in text or text.startswith("/vsi"):
        raise InvalidRequest(
            "input", f"{text} can't be read", "give a path, an http(s) URL or s3://bucket/key"
        )
    path = Path(text)
    if not path.is_file():
        raise InvalidRequest("input", f"{text} is not a file here", "check the path")
    return path


def _downloaded(text: str, folder: Path) -> Path:
    settings = Settings()
    try:
        address = scene_address(text, settings)
    except UnacceptableAddressError as error:
        raise InvalidRequest("input", error.problem, error.remedy) from error
    assert isinstance(address, RemoteScene), "only http(s) URLs come here"  # noqa: S101
    folder.mkdir()
    # Messages name the file by its last part.
    name = _UNUSUAL.sub("_", Path(address.url.path).name) or "scene.tif"
    path = folder / name
    download(address, path, settings.fetch)
    check_scene(path, str(address))
    return path
