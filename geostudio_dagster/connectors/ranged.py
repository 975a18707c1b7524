"""A file elsewhere, read where it is, piece by piece: what all kinds of such files have in common.

GDAL asks for the bytes; it opens no connection of its own. What it asks for at once, such as all
blocks of a window, is fetched in few requests at the same time; what it asks for one by one
comes through a small cache of aligned chunks.
"""

from __future__ import annotations

import io
import os
import re
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from types import TracebackType
from typing import Any, Self

from rasterio.abc import MultiByteRangeResourceContainer

from geostudio_dagster.errors import TaskError

CHUNK = 256 * 1024  # bytes, of the cache
_CHUNKS = 32
_GAP = 64 * 1024  # bytes between two ranges that are cheaper to read than to ask twice
_BESIDE = 8  # bytes around a block that GDAL reads with it, of a COG: 4 before, 8 after
_PIECE = 4 * 1024**2  # most bytes per request: small enough to be read at the same time
_AT_ONCE = 4


_LONGEST = 100  # characters of a name
_UNUSUAL = re.compile(r"[^\w.-]+")


def safe_name(path: str) -> str:
    """The last part of a path elsewhere, as a file's name that GDAL and messages may show."""
    name = _UNUSUAL.sub("_", PurePosixPath(path).name)[-_LONGEST:]
    return "scene.tif" if name in {"", ".", ".."} else name


class RangedFile(os.PathLike[str]):
    """A file that rasterio can open: ``rasterio.open(os.fspath(file), opener=file.opener)``.

    Every piece must be of the version that was there at the beginning. GDAL swallows what its
    plugins raise, so the first error is kept in ``failure``. Use it as a context manager.
    """

    def __init__(self, name: str) -> None:
        self.failure: TaskError | None = None
        self.size = 0
        self._name = name
        self._threads = ThreadPoolExecutor(_AT_ONCE, "ranges")
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        self._last = -1  # the chunk that was fetched last
        self._held: dict[int, memoryview] = {}  # spans by their first byte

    @abstractmethod
    def _patiently(self, offset: int, length: int) -> bytes:
        """All bytes from ``offset``, as far as there are any, with retries.

        Raises:
            TaskError: they can't be had, or are of another version.
        """

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

    @property
    def opener(self) -> Any:
        """What rasterio opens it by."""
        return _Container(self)

    def close(self) -> None:
        """Fetch nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

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
            numbers = range(offset // CHUNK, (end - 1) // CHUNK + 1)
            chunks = b"".join(self._chunk(number) for number in numbers)
        except TaskError as error:
            self.failure = self.failure or error
            return b""
        begin = offset - numbers[0] * CHUNK
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
        begins = [max(at - _BESIDE, 0) for at in offsets]
        ends = [at + size + _BESIDE for at, size in zip(offsets, sizes, strict=True)]
        spans = zip(begins, ends, strict=True)
        self._held = self._fetched(begins, [end - begin for begin, end in spans])

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
            data = self._patiently(number * CHUNK, count * CHUNK)
            for index in range(count):
                self._cache[number + index] = data[index * CHUNK : (index + 1) * CHUNK]
            self._last = number + count - 1
        self._cache.move_to_end(number)
        while len(self._cache) > _CHUNKS:
            self._cache.popitem(last=False)
        return self._cache[number]


class _Container(MultiByteRangeResourceContainer):  # type: ignore[misc]
    """The folder that GDAL finds the file in, alone."""

    def __init__(self, file: RangedFile) -> None:
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

    def __init__(self, file: RangedFile) -> None:
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
