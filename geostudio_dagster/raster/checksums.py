"""Checksums of deflate blocks: a file with a hole in it must not become a map.

Every deflate stream ends with a checksum, but libtiff looks at it only where the stream yields
exactly the bytes of its block; it takes one that yields more, since some writers pad their last
strip. A hole of zeros in a block, as a broken copy or download leaves it, yields more nearly
always: GDAL returned its pixels without an error in 95 to 100 of 100 cases, and those behind one
flipped bit in 10 of 100. So the checksum of each block that is read is made again, of its pixels;
or else, where they are not all at hand, of what the block inflates to, at some 450 to 800 MB/s.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self, cast

import numpy as np
import rasterio
from isal.igzip_lib import DECOMP_ZLIB, IgzipDecompressor, IsalError
from numpy.typing import NDArray
from rasterio.enums import Compression, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from geostudio_dagster.raster.adler import adler_of
from geostudio_dagster.raster.directories import Content, check_directories
from geostudio_dagster.raster.patches import Box

_PIECE = 256 * 1024  # bytes at a time, of either side: they stay in the cache of the processor
# A stream may yield more than its block (see above), but not without end.
_MOST_BLOCKS = 2
_MOST_HELD = 64 * 1024**2  # bytes of blocks to ask for at once
_TRAILER = 4  # bytes that a stream's checksum takes, its last ones
_MOST_PAGES = 64  # of a file, to look for its mask in


class Bytes(Content, Protocol):
    """A file's bytes, which can be asked for ahead."""

    def hold(self, offsets: Sequence[int], sizes: Sequence[int]) -> None:
        """These ranges are read next, by whoever checks them and then by GDAL."""


class LocalBytes:
    """Those of a local file, for any thread. Use it as a context manager.

    Raises:
        OSError: there is no such file.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    @property
    def size(self) -> int:
        """See :class:`Bytes`."""
        return os.fstat(self._file.fileno()).st_size

    def read_at(self, offset: int, length: int) -> bytes:
        """See :class:`Bytes`."""
        return os.pread(self._file.fileno(), length, offset)

    def hold(self, offsets: Sequence[int], sizes: Sequence[int]) -> None:
        """The system does."""


class DamagedBlockError(Exception):
    """A block's bytes are not those that its checksum was made of."""


@contextmanager
def checking(
    file: str | os.PathLike[str], dataset: Any, threads: int = 1
) -> Iterator[Checksums | None]:
    """Checks the blocks of a file that is open as ``dataset``, where somebody can give its bytes.

    Raises:
        OSError: there is no such file, or it is cut short.
    """
    if os.fspath(file).startswith("/vsi"):
        yield None  # in memory, say, where only GDAL can read
        return
    with ExitStack() as stack:
        if hasattr(file, "read_at"):
            content, threads = cast("Bytes", file), 1
        else:
            content = stack.enter_context(LocalBytes(Path(file)))
        check_directories(content)
        mask = stack.enter_context(_mask_of(dataset))
        masks = None if mask is None else Checksums(mask, content, of=" of the mask")
        yield Checksums(dataset, content, threads, mask=masks)


@contextmanager
def _mask_of(dataset: Any) -> Iterator[Any]:
    """The mask that lies in the file of ``dataset``, as a dataset of its own; None of none."""
    kinds = dataset.mask_flag_enums[0]
    if MaskFlags.per_dataset in kinds and MaskFlags.alpha not in kinds:
        for number in range(2, _MOST_PAGES):
            try:
                page = _page(dataset, number)
            except RasterioError:
                break  # there are no more
            with page:
                # GDAL makes masks of bits. Overviews and their masks are smaller.
                bits = page.tags(1, ns="IMAGE_STRUCTURE").get("NBITS")
                if (page.count, bits, page.shape) == (1, "1", dataset.shape):
                    yield page
                    return
    yield None


def _page(dataset: Any, number: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # only the first page is
        return rasterio.open(f"GTIFF_DIR:{number}:{dataset.name}", driver="GTiff")


class _Block(NamedTuple):
    owner: Checksums
    place: tuple[int, int, int]  # plane, row, column
    offset: int
    size: int


class Checksums:
    """Checks the deflate blocks of one GeoTIFF, each once. For one thread at a time.

    Blocks of other compressions have no checksums and are passed over.

    Args:
        of: what the dataset is called where its blocks are told.
        mask: checks the mask that all of its bands share.
    """

    def __init__(
        self,
        dataset: Any,
        content: Bytes,
        threads: int = 1,
        *,
        of: str = "",
        mask: Checksums | None = None,
    ) -> None:
        self._dataset = dataset
        self._content = content
        self._threads = threads
        self._of = of
        self._mask = mask
        self._deflate = dataset.compression == Compression.deflate
        # Interleaved by pixel, all bands share a block, and GDAL tells its place for each.
        structure = dataset.tags(ns="IMAGE_STRUCTURE")
        self._shared = structure.get("INTERLEAVE") == "PIXEL"
        self._planes = 1 if self._shared else dataset.count
        self._predictor = int(structure.get("PREDICTOR", 1))
        self._height, self._width = dataset.block_shapes[0]
        if self._height == 1 and self._deflate and self._is_one_strip():
            self._height = dataset.height
        shape = -(-dataset.height // self._height), -(-dataset.width // self._width)
        self._checked = np.zeros((self._planes, *shape) if self._deflate else 0, np.bool_)
        pixel = max(np.dtype(kind).itemsize for kind in dataset.dtypes)
        self._most = _MOST_BLOCKS * self._height * self._width * pixel
        self._most *= dataset.count if self._shared else 1

    def expect(self, bands: Sequence[int], box: Box) -> None:
        """Ask for the blocks that are read next: of ``bands`` (1-based) under ``box``.

        And those of their mask: in COGs they lie between the others, and GDAL reads both at once.
        """
        for blocks in _groups(self._found(bands, box, sparse=True)):
            self._hold(blocks)
            return  # as many as can be held

    def check_read(self, bands: Sequence[int], box: Box, pixels: NDArray[Any]) -> None:
        """Check the blocks of ``bands`` under ``box``, of which ``pixels`` were read.

        Args:
            bands: as for :meth:`check`. pixels: (bands, height, width) as GDAL gave them, of the
                type that they were asked for.

        Raises:
            DamagedBlockError: as for :meth:`check`.
        """
        blocks = self._found(bands, box, sparse=True)
        own = [block for block in blocks if block.owner is self]
        planes = {band - 1: plane for band, plane in zip(bands, pixels, strict=True)}
        whole = not self._shared or len(planes) == self._dataset.count
        if own and whole and pixels.dtype == self._dataset.dtypes[0]:
            gave = partial(self._gave, box=box, planes=planes)
            with _mapping(min(self._threads, len(own))) as mapped:
                for block, sound in zip(own, mapped(gave, own), strict=True):
                    self._checked[block.place] = sound
        self._inflate([block for block in blocks if not block.owner._checked[block.place]])

    def check(self, bands: Sequence[int], box: Box, *, sparse: bool = True) -> None:
        """Check the blocks of ``bands`` (1-based) under ``box`` that have not been checked yet.

        And those of their mask. Where they may be ``sparse``, those that are not stored are all no
        data.

        Raises:
            DamagedBlockError: one of them has another checksum, or no end, or is missing.
        """
        for blocks in _groups(self._found(bands, box, sparse=sparse)):
            self._hold(blocks)
            self._inflate(blocks)

    def _hold(self, blocks: Sequence[_Block]) -> None:
        self._content.hold([block.offset for block in blocks], [block.size for block in blocks])

    def _inflate(self, blocks: Sequence[_Block]) -> None:
        """Check blocks by what their streams yield."""
        with _mapping(min(self._threads, len(blocks))) as mapped:
            for block, sound in zip(blocks, mapped(_inflates, blocks), strict=True):
                if not sound:
                    raise DamagedBlockError(block.owner._told(block))
                block.owner._checked[block.place] = True

    def _gave(self, block: _Block, box: Box, planes: Mapping[int, NDArray[Any]]) -> bool:
        """Whether the block's checksum is that of its pixels in ``planes``, by band from 0.

        False, too, where some of its pixels lie outside of the box or of the image, or have other
        bytes in the file, so that this can't be told.
        """
        plane, row, col = block.place
        top, left = row * self._height - box.row, col * self._width - box.col
        last = min(self._height, self._dataset.height - row * self._height)
        height = last if self._width >= self._dataset.width else self._height  # the last strip's
        if min(top, left) < 0 or top + height > box.height or left + self._width > box.width:
            return False
        place = np.s_[top : top + height, left : left + self._width]
        samples = range(self._dataset.count) if self._shared else [plane]
        made = adler_of([planes[sample][place] for sample in samples], self._predictor)
        stored = self._content.read_at(block.offset + block.size - _TRAILER, _TRAILER)
        return made == int.from_bytes(stored, "big")

    def _found(self, bands: Sequence[int], box: Box, *, sparse: bool) -> list[_Block]:
        """Blocks that have not been checked, and those of the mask, in the file's order."""
        found = [*self._unchecked(bands, box, sparse=sparse)]
        if self._mask is not None:
            found += self._mask._unchecked([1], box, sparse=True)
        return sorted(found, key=lambda block: block.offset)

    def _unchecked(self, bands: Sequence[int], box: Box, *, sparse: bool) -> Iterator[_Block]:
        if not self._deflate:
            return
        rows = range(box.row // self._height, (box.bottom - 1) // self._height + 1)
        cols = range(box.col // self._width, (box.right - 1) // self._width + 1)
        planes = [band - 1 for band in bands] if self._planes > 1 else [0] * bool(bands)
        for plane in planes:
            for row in rows:
                for col in cols:
                    if not self._checked[plane, row, col]:
                        block = self._place(plane, row, col)
                        if block is not None:
                            yield block
                        elif not sparse:
                            raise DamagedBlockError(f"block {col}, {row} is missing")

    def _is_one_strip(self) -> bool:
        """Whether GDAL shows one strip of thousands of rows as rows.

        Then the first alone has a place. In a sparse file that may be so, too, and does no harm.
        """
        others = range(1, self._dataset.height)
        return all(self._place(0, row, 0) is None for row in others)

    def _place(self, plane: int, row: int, col: int) -> _Block | None:
        """Where a block lies in the file; None where it is not stored, for want of data."""
        offset, size = (
            self._dataset.get_tag_item(f"BLOCK_{what}_{col}_{row}", "TIFF", bidx=plane + 1)
            for what in ("OFFSET", "SIZE")
        )
        if not offset or not size:
            return None
        return _Block(self, (plane, row, col), int(offset), int(size))

    def _inflates(self, block: _Block) -> bool:
        """Whether the stream ends, with the checksum of what it yielded."""
        stream = IgzipDecompressor(flag=DECOMP_ZLIB)
        offset, end, left = block.offset, block.offset + block.size, self._most
        try:
            while not stream.eof and left > 0:
                data = b""
                if stream.needs_input:
                    data = self._content.read_at(offset, min(_PIECE, end - offset))
                    if not data:
                        return False
                    offset += len(data)
                left -= len(stream.decompress(data, _PIECE))
        except IsalError:  # type: ignore[misc]  # its stub calls the class an instance
            return False
        return bool(stream.eof)

    def _told(self, block: _Block) -> str:
        plane, row, col = block.place
        band = f" of band {plane + 1}" if self._planes > 1 else self._of
        return (
            f"the block of {self._width} x {self._height} pixels at column {col * self._width}, "
            f"row {row * self._height}{band} is damaged or cut short, by its checksum"
        )


def _inflates(block: _Block) -> bool:
    return block.owner._inflates(block)


def _groups(blocks: Iterable[_Block]) -> Iterator[list[_Block]]:
    """All blocks in their order, together as far as they can be held."""
    group: list[_Block] = []
    size = 0
    for block in blocks:
        if group and size + block.size > _MOST_HELD:
            yield group
            group, size = [], 0
        group.append(block)
        size += block.size
    if group:
        yield group


@contextmanager
def _mapping(threads: int) -> Iterator[Callable[..., Any]]:
    if threads < 2:  # noqa: PLR2004
        yield map
        return
    with ThreadPoolExecutor(threads, "checksums") as pool:
        yield pool.map
