"""A remote scene read where it is, piece by piece, through the guard of the fetcher.

GDAL asks for the bytes; it opens no connection of its own. What it asks for at once, such as all
blocks of a window, is fetched in few requests at the same time; what it asks for one by one
comes through a small cache of aligned chunks.
"""

from __future__ import annotations

import io
import os
import re
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import PurePosixPath
from types import TracebackType
from typing import Any, Self

import httpcore
from rasterio.abc import MultiByteRangeResourceContainer

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
from geostudio_dagster.errors import TaskError
from geostudio_dagster.settings import FetchSettings

_CHUNK = 256 * 1024  # bytes, of the cache
_CHUNKS = 32
_GAP = 64 * 1024  # bytes between two ranges that are cheaper to read than to ask twice
_PIECE = 4 * 1024**2  # most bytes per request: small enough to be read at the same time
_AT_ONCE = 4
_PATIENCE = 10  # silences that one read may take
_UNUSUAL = re.compile(r"[^\w.-]+")


class RangesUnsupportedError(Exception):
    """The server can't serve parts of the file, or can't tell that they are of one version."""


def file_name(scene: RemoteScene) -> str:
    """The last part of the scene's address, as a file's name that messages may show."""
    return _UNUSUAL.sub("_", PurePosixPath(scene.url.path).name) or "scene.tif"


class RemoteFile(os.PathLike[str]):
    """A remote file that rasterio can open: ``rasterio.open(os.fspath(file), opener=file.opener)``.

    Every piece must be of the version that was there at the beginning. GDAL swallows what its
    plugins raise, so the first error is kept in ``failure``. Use it as a context manager.

    Raises:
        RangesUnsupportedError: download it instead.
        TaskError: as for :func:`fetch.download`.
    """

    def __init__(self, scene: RemoteScene, settings: FetchSettings) -> None:
        self.failure: TaskError | None = None
        self._scene = scene
        self._settings = settings
        self._name = file_name(scene)
        self._deadline = Deadline(time.monotonic())
        self._pool = GuardedPool(settings, self._deadline)
        self._threads = ThreadPoolExecutor(_AT_ONCE, "ranges")
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        self._last = -1  # the chunk that was fetched last
        self._held: dict[int, memoryview] = {}  # spans by their first byte
        self.size, self._version = 0, ""
        try:
            self._cache[0] = self._patiently(0, _CHUNK)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __fspath__(self) -> str:
        return self._name

    def __str__(self) -> str:
        return str(self._scene)

    @property
    def opener(self) -> Any:
        """What rasterio opens it by."""
        return _Container(self)

    def close(self) -> None:
        """End all connections."""
        self._deadline.at = 0.0  # whoever still waits, waits no longer
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._pool.close()

    def read_at(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``offset``; empty after a failure.

        They are those that are held, or come through the cache.
        """
        end = min(offset + length, self.size)
        if offset >= end:
            return b""
        if _holds(self._held, offset, end):
            return _cut(self._held, offset, end - offset)
        try:
            numbers = range(offset // _CHUNK, (end - 1) // _CHUNK + 1)
            chunks = b"".join(self._chunk(number) for number in numbers)
        except TaskError as error:
            self.failure = self.failure or error
            return b""
        begin = offset - numbers[0] * _CHUNK
        return chunks[begin : begin + end - offset]

    def read_ranges(self, offsets: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
        """The bytes of several ranges, past the cache; empty ones after a failure."""
        ranges = list(zip(offsets, sizes, strict=True))
        held = all(_holds(self._held, at, min(at + size, self.size)) for at, size in ranges)
        spans = self._held if held else self._fetched(offsets, sizes)
        return [_cut(spans, at, size) if spans else b"" for at, size in ranges]

    def hold(self, offsets: Sequence[int], sizes: Sequence[int]) -> None:
        """Fetch several ranges at the same time and keep them for whoever reads them next.

        Those that were held before are let go.
        """
        self._held = {}  # before others take their place in memory
        self._held = self._fetched(offsets, sizes)

    def _fetched(self, offsets: Sequence[int], sizes: Sequence[int]) -> dict[int, memoryview]:
        """Spans that the ranges lie in, by their first byte; none after a failure."""
        wanted = sorted(
            {(at, min(at + size, self.size)) for at, size in zip(offsets, sizes, strict=True)}
        )
        try:
            return dict(self._spans(list(_merged(wanted))))
        except TaskError as error:
            self.failure = self.failure or error
            return {}

    def _spans(self, spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, memoryview]]:
        """The bytes of each span (first, one past the last), by its first."""
        pieces = [
            (at, min(at + _PIECE, end)) for begin, end in spans for at in range(begin, end, _PIECE)
        ]
        found = dict(zip(pieces, self._threads.map(self._piece, pieces), strict=True))
        for begin, end in spans:
            parts = [found[at, min(at + _PIECE, end)] for at in range(begin, end, _PIECE)]
            yield begin, memoryview(parts[0] if len(parts) == 1 else b"".join(parts))

    def _piece(self, span: tuple[int, int]) -> bytes:
        return self._patiently(span[0], span[1] - span[0])

    def _chunk(self, number: int) -> bytes:
        if number not in self._cache:
            # Who reads on and on gets some chunks ahead.
            count = 4 if number == self._last + 1 else 1
            data = self._patiently(number * _CHUNK, count * _CHUNK)
            for index in range(count):
                self._cache[number + index] = data[index * _CHUNK : (index + 1) * _CHUNK]
            self._last = number + count - 1
        self._cache.move_to_end(number)
        while len(self._cache) > _CHUNKS:
            self._cache.popitem(last=False)
        return self._cache[number]

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


class _Container(MultiByteRangeResourceContainer):  # type: ignore[misc]
    """The folder that GDAL finds the file in, alone."""

    def __init__(self, file: RemoteFile) -> None:
        self._file = file

    def open(self, path: str, mode: str = "r", **_: Any) -> _Reader:
        if "r" not in mode or "+" in mode or not self.isfile(path):
            raise FileNotFoundError(path)
        return _Reader(self._file)

    def isfile(self, path: str) -> bool:
        return path == os.fspath(self._file)

    def isdir(self, path: str) -> bool:
        return False

    def ls(self, path: str) -> list[str]:
        return []

    def mtime(self, path: str) -> int:
        return 0

    def rm(self, path: str) -> None:
        raise PermissionError(path)

    def size(self, path: str) -> int:
        return self._file.size


class _Reader(io.RawIOBase):
    """One of GDAL's handles on the file."""

    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._file.size}[whence]
        self._place = max(origin + offset, 0)
        return self._place

    def read(self, size: int = -1) -> bytes:
        data = self._file.read_at(self._place, self._file.size if size < 0 else size)
        self._place += len(data)
        return data

    def get_byte_ranges(self, offsets: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
        return self._file.read_ranges(offsets, sizes)


def _merged(spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Spans in order, at least one, those close to each other as one."""
    begin, end = spans[0]
    for first, last in spans[1:]:
        if first - end > _GAP:
            yield begin, end
            begin, end = first, last
        end = max(end, last)
    yield begin, end


def _holds(spans: dict[int, memoryview], begin: int, end: int) -> bool:
    return any(at <= begin and end <= at + len(span) for at, span in spans.items())


def _cut(spans: dict[int, memoryview], offset: int, size: int) -> bytes:
    begin = max(at for at in spans if at <= offset)
    return bytes(spans[begin][offset - begin : offset - begin + size])
