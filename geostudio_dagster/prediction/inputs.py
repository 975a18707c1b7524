"""Scenes as a person at a terminal names them: paths, http(s) URLs, ``s3://`` addresses."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import rasterio

from geostudio_dagster.connectors.addresses import (
    RemoteScene,
    UnacceptableAddressError,
    scene_address,
)
from geostudio_dagster.connectors.bucket import BucketFile
from geostudio_dagster.connectors.fetch import download
from geostudio_dagster.connectors.header import read_header
from geostudio_dagster.connectors.ranges import RangesUnsupportedError, RemoteFile, file_name
from geostudio_dagster.errors import InvalidRequest
from geostudio_dagster.raster.opening import File
from geostudio_dagster.settings import Settings

_S3 = "s3://"
_REMOTE = re.compile(r"(https?|s3)://", re.IGNORECASE)


@contextmanager
def readable(inputs: Sequence[str], scratch: Path) -> Iterator[list[File]]:
    """What the engine can open for each input, in their order, within the body.

    A path stays as it is. ``s3://bucket/key`` is read in place, block by block, with the
    credentials that boto3 finds (see :class:`BucketFile`). So is an http(s) URL, but through the
    guard of the service and with its limits; where its server knows no ranges, it is downloaded
    into ``scratch``.

    Raises:
        InvalidRequest: no such file, or another kind of address.
        TaskError: as for :func:`download` and :func:`read_header`.
    """
    # First those that cost nothing to check: a wrong path is told before a long download.
    found: dict[str, File] = {text: _local(text) for text in inputs if not _REMOTE.match(text)}
    buckets = {text: _object(text) for text in inputs if text.startswith(_S3)}
    # No look for side files: they could lie elsewhere, and asking a bucket for them takes time.
    with ExitStack() as stack, rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
        for number, text in enumerate(inputs):
            if text in buckets and text not in found:
                found[text] = stack.enter_context(BucketFile(*buckets[text]))
            if text not in found:
                found[text] = _remote(text, scratch / f"input-{number}", stack)
        yield [found[text] for text in inputs]


def _object(text: str) -> tuple[str, str]:
    """Bucket and key."""
    bucket, _, key = text.removeprefix(_S3).partition("/")
    if not bucket or not key:
        raise InvalidRequest("input", f"{text} names no object", "write s3://bucket/key.tif")
    return bucket, key


def _local(text: str) -> Path:
    if "://" in text or text.startswith("/vsi"):
        raise InvalidRequest(
            "input", f"{text} can't be read", "give a path, an http(s) URL or s3://bucket/key"
        )
    path = Path(text)
    if not path.is_file():
        raise InvalidRequest("input", f"{text} is not a file here", "check the path")
    return path


def _remote(text: str, folder: Path, stack: ExitStack) -> File:
    settings = Settings()
    try:
        address = scene_address(text, settings)
    except UnacceptableAddressError as error:
        raise InvalidRequest("input", error.problem, error.remedy) from error
    assert isinstance(address, RemoteScene), "only http(s) URLs come here"  # noqa: S101
    try:
        return stack.enter_context(RemoteFile(address, settings.fetch))
    except RangesUnsupportedError:
        return _downloaded(address, folder, settings)


def _downloaded(address: RemoteScene, folder: Path, settings: Settings) -> Path:
    folder.mkdir()
    # Messages name the file by its last part.
    path = folder / file_name(address)
    download(address, path, settings.fetch)
    read_header(path, str(address))
    return path
