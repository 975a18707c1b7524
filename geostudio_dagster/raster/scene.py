"""A scene opened for reading: one grid, the bands that a model wants, and which pixels count."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.env import Env
from rasterio.windows import Window

from geostudio_dagster.errors import TaskError
from geostudio_dagster.models.bundle import Band, BundleManifest
from geostudio_dagster.raster.bands import choose_bands
from geostudio_dagster.raster.checksums import Checksums, DamagedBlockError, checking
from geostudio_dagster.raster.grids import check_grids
from geostudio_dagster.raster.nodata import representable
from geostudio_dagster.raster.opening import (
    ONLY_THE_FILE,
    UNREADABLE,
    File,
    Source,
    opened,
    raise_own,
    unopened,
)
from geostudio_dagster.raster.patches import Box

_MOST = float(np.finfo(np.float32).max)  # larger ones would be infinite for the model
_NAME_TAGS = ("name", "band_name", "bandname", "long_name", "common_name")


@dataclass(frozen=True, slots=True)
class Channel:
    """One plane that the model sees: a band of one file, and how its pixels are normalised.

    The model sees ``(pixel - centre) * gain``, float32.
    """

    file: int
    band: int  # 1-based, as GDAL counts
    nodata: float | None
    centre: float
    gain: float


class Scene:
    """A raster, or several on one grid (dates, or band files), as the channels of a model.

    Channels are ordered by date, then by the manifest's bands. Use it as a context manager, by
    one thread at a time.

    Raises:
        TaskError: ``not_a_raster``, ``too_few_bands``, ``grids_differ``, ``not_georeferenced``,
            ``rotated_grid``, ``wrong_dates`` or ``unsupported_pixels``.
    """

    def __init__(self, source: Source, manifest: BundleManifest, decode_threads: int = 1) -> None:
        self.paths = _paths(source)
        self._stack = ExitStack()
        try:
            with Env(**ONLY_THE_FILE):
                self._stamps = [_stamp(path) for path in self.paths]
                self._files = [
                    self._stack.enter_context(opened(path, Path(path).name, decode_threads))
                    for path in self.paths
                ]
                self._checksums = [
                    self._checking(path, file, decode_threads)
                    for path, file in zip(self.paths, self._files, strict=True)
                ]
                check_grids(self.paths, self._files)
                self.channels = self._choose(manifest)
        except BaseException:
            self._stack.close()
            raise
        first = self._files[0]
        self.width: int = first.width
        self.height: int = first.height
        self.crs: Any = first.crs
        place: Affine = first.transform
        # A rotation that is left here is none but of rounding.
        self.transform = Affine(place.a, 0, place.c, 0, place.e, place.f)
        self.block: tuple[int, int] = first.block_shapes[0]
        used = [self._files[item.file].dtypes[item.band - 1] for item in self.channels]
        self.dtype: np.dtype[Any] = np.result_type(*used)
        self._masks = self._find_masks()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, pixels."""
        return self.width, self.height

    def core(self, window: tuple[int, int, int, int] | None) -> Box:
        """The window (column, row, width, height) as a box; None is the whole scene.

        Raises:
            TaskError: ``bad_window``, the window is empty or leaves the scene.
        """
        if window is None:
            return Box(0, 0, self.width, self.height)
        box = Box(*window)
        inside = box.col >= 0 and box.row >= 0
        inside = inside and box.right <= self.width and box.bottom <= self.height
        if box.width < 1 or box.height < 1 or not inside:
            raise TaskError(
                "bad_window",
                f"The window {tuple(box)} (column, row, width, height) is not inside "
                f"{self._name()}, which has {self.width} x {self.height} pixels.",
            )
        return box

    def read(self, box: Box, out: NDArray[Any], valid: NDArray[np.bool_]) -> None:
        """Fill ``out`` (channels, height, width) with raw pixels and ``valid`` (height, width).

        A pixel is valid where every channel of it is: not nodata, finite in float32, not masked.

        Raises:
            TaskError: ``corrupt``, some block can't be decoded or has another checksum; or
                ``input_changed``, retryable, and that is why.
        """
        self._read_channels(box, out)
        valid[...] = True
        for number, alpha in self._masks:
            file = self._files[number]
            read = file.read if alpha else file.read_masks
            with self._reading(number, [alpha] if alpha else [], box) as window:
                mask = read(alpha or 1, window=window)
                checksums = self._checksums[number]
                if alpha and checksums is not None:
                    checksums.check_read([alpha], box, mask[np.newaxis])
                np.logical_and(valid, mask, out=valid)
        self._exclude_nodata(out, valid)

    def check_unchanged(self) -> None:
        """Make sure that no file was replaced or rewritten since it was opened.

        Raises:
            TaskError: ``input_changed``, retryable.
        """
        for path, stamp in zip(self.paths, self._stamps, strict=True):
            if _stamp(path) != stamp:
                raise TaskError(
                    "input_changed",
                    f"{Path(path).name} changed while it was read; try again when it is complete.",
                    retryable=True,
                )

    def _read_channels(self, box: Box, out: NDArray[Any]) -> None:
        first = 0
        for number, run in groupby(self.channels, key=lambda channel: channel.file):
            bands = [channel.band for channel in run]
            with self._reading(number, bands, box) as window:
                pixels = out[first : first + len(bands)]
                # One call for all bands: a pixel-interleaved block is decoded once.
                self._files[number].read(bands, window=window, out=pixels)
                checksums = self._checksums[number]
                if checksums is not None:
                    checksums.check_read(bands, box, pixels)
            first += len(bands)

    @contextmanager
    def _reading(self, number: int, bands: Sequence[int], box: Box) -> Iterator[Window]:
        """The box as a window to read bands of; what fails is told by file and place."""
        checksums = self._checksums[number]
        try:
            if checksums is not None:
                checksums.expect(bands, box)
            yield Window(box.col, box.row, box.width, box.height)
        except (*UNREADABLE, DamagedBlockError) as error:
            raise_own(self.paths[number])
            self.check_unchanged()
            raise TaskError(
                "corrupt",
                f"{Path(self.paths[number]).name} can't be read at columns {box.col} to "
                f"{box.right}, rows {box.row} to {box.bottom}: {_cause(error)}; upload the file "
                "again.",
            ) from error

    def _exclude_nodata(self, pixels: NDArray[Any], valid: NDArray[np.bool_]) -> None:
        floating = self.dtype.kind == "f"
        for plane, channel in zip(pixels, self.channels, strict=True):
            if floating:
                np.logical_and(valid, np.abs(plane) <= _MOST, out=valid)
            nodata = representable(channel.nodata, self.dtype)
            if nodata is not None and not np.isnan(nodata):
                np.logical_and(valid, plane != self.dtype.type(nodata), out=valid)

    def _checking(self, path: File, file: Any, threads: int) -> Checksums | None:
        try:
            return self._stack.enter_context(checking(path, file, threads))
        except UNREADABLE as error:
            raise_own(path)
            raise unopened(Path(path).name, error) from error

    def _name(self) -> str:
        return Path(self.paths[0]).name

    def _choose(self, manifest: BundleManifest) -> tuple[Channel, ...]:
        channels: list[Channel] = []
        for files in self._dates(manifest):
            for part, wanted in _parts(files, manifest):
                places = [(number, band) for number in part for band in self._bands(number)]
                names = [_band_name(self._files[number], band) for number, band in places]
                scene = " and ".join(Path(self.paths[number]).name for number in part)
                scene = scene if len(part) == 1 else f"The scene of {scene}"
                masks = self._alphas(part[0]) if len(part) == 1 else []  # of several: whose?
                chosen = choose_bands(wanted, names, scene, masks)
                channels += [
                    self._channel(manifest, band, *places[place])
                    for band, place in zip(wanted, chosen, strict=True)
                ]
        return tuple(channels)

    def _dates(self, manifest: BundleManifest) -> list[range]:
        """The files of each date: one or more per date, in the order they were given."""
        files, dates = len(self._files), manifest.dates
        if files % dates:
            raise TaskError(
                "wrong_dates",
                f"Model {manifest.name} wants {dates} dates but got {files} files; "
                f"give one file per date, oldest first.",
            )
        each = files // dates
        return [range(start, start + each) for start in range(0, files, each)]

    def _bands(self, number: int) -> list[int]:
        """Bands of a file that hold data: an alpha band is a mask."""
        alphas = self._alphas(number)
        return [band for band in self._files[number].indexes if band not in alphas]

    def _alphas(self, number: int) -> list[int]:
        kinds = enumerate(self._files[number].colorinterp, start=1)
        return [band for band, kind in kinds if kind == ColorInterp.alpha]

    def _channel(self, manifest: BundleManifest, band: Band, number: int, index: int) -> Channel:
        file = self._files[number]
        nodata = file.nodatavals[index - 1]
        scale, offset = band.scale, band.offset
        if not file.dtypes[index - 1].startswith("float"):
            scale *= band.integer_scale
        if manifest.scaled_by_tags:
            offset += scale * file.offsets[index - 1]
            scale *= file.scales[index - 1]
        if not scale or not math.isfinite(scale) or not math.isfinite(offset):
            raise TaskError(
                "bad_scale",
                f"Band {band.name} of {Path(self.paths[number]).name} has the scale "
                f"{file.scales[index - 1]:g} and the offset {file.offsets[index - 1]:g} in its "
                "tags; correct them.",
            )
        return Channel(
            file=number,
            band=index,
            nodata=manifest.nodata if nodata is None else nodata,
            # Centre and gain rather than gain and bias: no cancellation of large numbers.
            centre=(band.mean - offset) / scale,
            gain=scale / band.std,
        )

    def _find_masks(self) -> list[tuple[int, int | None]]:
        """What to read beside the pixels: (file, its alpha band, or None for its mask band)."""
        masks: list[tuple[int, int | None]] = []
        for number in sorted({channel.file for channel in self.channels}):
            file = self._files[number]
            masks += [(number, band) for band in self._alphas(number)]
            flags = file.mask_flag_enums[0]
            if MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags:
                masks.append((number, None))
        return masks


def _paths(source: Source) -> tuple[File, ...]:
    return (source,) if isinstance(source, str | os.PathLike) else tuple(source)


def _parts(files: range, manifest: BundleManifest) -> list[tuple[Sequence[int], tuple[Band, ...]]]:
    """Files of one date, and the bands to look for in them.

    As many files as the model has modalities are one per modality, in the manifest's order.
    """
    modalities = tuple(manifest.modalities.values())
    if len(modalities) < 2 or len(files) != len(modalities):  # noqa: PLR2004
        return [(files, manifest.bands)]
    return [((number,), bands) for number, bands in zip(files, modalities, strict=True)]


def _stamp(path: File) -> tuple[int, int, int] | None:
    if hasattr(path, "opener"):
        return None  # it sees to that itself
    try:
        status = Path(path).stat()
    except OSError:
        return None  # not a local file
    return status.st_mtime_ns, status.st_size, status.st_ino


def _cause(error: Exception) -> str:
    """What GDAL said, where rasterio only points at it."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return str(error).rstrip(".")


def _band_name(file: Any, band: int) -> str | None:
    description = file.descriptions[band - 1]
    if description:
        return str(description)
    tags = {key.lower(): value for key, value in file.tags(band).items()}
    return next((tags[key] for key in _NAME_TAGS if tags.get(key)), None)
