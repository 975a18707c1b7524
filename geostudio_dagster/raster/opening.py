"""Opening a raster's file with GDAL, and what is told of one that can't be opened."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import rasterio
from rasterio._err import CPLE_BaseError  # what GDAL says without rasterio's words for it
from rasterio.errors import RasterioError

from geostudio_dagster.errors import TaskError

# A file, by its path or as something that brings its own ``opener`` for rasterio, its
# :class:`checksums.Bytes` and the error that befell it as ``failure``, such as
# :class:`connectors.ranges.RemoteFile`.
File = str | os.PathLike[str]
# One file, or several: one per date, or the files of a scene's bands, or both.
Source = File | Sequence[File]

# A VRT or a driver with side effects must never be opened for a user.
DRIVER = "GTiff"
# Nothing beside a scene's file is read (.aux.xml, .msk, .ovr, world files): it could point
# elsewhere, and would stay behind where the file goes.
ONLY_THE_FILE = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_GEOREF_SOURCES": "INTERNAL",
}
# What GDAL and rasterio raise where a file can't be read.
UNREADABLE = (RasterioError, CPLE_BaseError, OSError)


def opened(file: File, shown: str, threads: int = 1) -> Any:
    """A GeoTIFF as rasterio's dataset, of which all but the pixels has been read.

    Args:
        file: the file. shown: how errors name it. threads: that decode blocks.

    Raises:
        TaskError: ``not_a_raster``, ``unsupported_pixels``, or what befell a file that has its
            own opener.
    """
    opener = getattr(file, "opener", None)
    try:
        dataset = rasterio.open(os.fspath(file), driver=DRIVER, opener=opener, NUM_THREADS=threads)
        try:
            look_through(dataset)
        except BaseException:
            dataset.close()
            raise
    except (*UNREADABLE, UnicodeError) as error:
        raise_own(file)
        raise unopened(shown, error) from error
    if dataset.dtypes[0].startswith("complex"):  # a file's bands are all of one type
        dataset.close()
        raise TaskError(
            "unsupported_pixels",
            f"{shown} has {dataset.dtypes[0]} pixels; give real numbers, such as uint16.",
        )
    return dataset


def unopened(shown: str, error: Exception) -> TaskError:
    """The error for a file that can't be opened."""
    if isinstance(error, UnicodeError):
        problem = "the names of its bands or of its CRS are not UTF-8; write them again"
    else:
        problem = (str(error).strip().splitlines() or ["no details"])[0].rstrip(".")
        problem += "; give a GeoTIFF or a COG that is complete"
    return TaskError("not_a_raster", f"{shown} can't be opened as a GeoTIFF: {problem}.")


def raise_own(file: File) -> None:
    """Raise the error that befell a file with its own opener: GDAL knows only that it failed."""
    failure = getattr(file, "failure", None)
    if isinstance(failure, TaskError):
        raise failure


def look_through(dataset: Any) -> None:
    """Have GDAL read now what it reads of a file when it is first asked for it."""
    for name in ("mask_flag_enums", "colorinterp", "descriptions", "nodatavals", "scales"):
        getattr(dataset, name)
    for band in dataset.indexes:
        dataset.tags(band)
