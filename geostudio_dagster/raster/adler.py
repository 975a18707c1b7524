"""The checksum of a deflate block, made again of the pixels that GDAL read from it.

A block's stream ends with the Adler-32 of what was compressed: its pixels, which a predictor
(TIFF 6.0, section 14, and Adobe's technical note 3 for floats) has made differences of. To make
those again and sum them up takes a fifth of the time of inflating the stream once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from isal.isal_zlib import adler32
from numpy.typing import NDArray

_SLAB = 512 * 64  # pixels at a time: they stay in the cache of the processor
_DIFFERENCES, _FLOATING = 2, 3  # TIFF's predictors; 1 is none


def adler_of(planes: Sequence[NDArray[Any]], predictor: int) -> int:
    """Adler-32 of a block as it was before it was compressed.

    Args:
        planes: the whole block, (height, width) each, of the file's own type and order of bytes;
            several where a pixel's samples lie together in the file.
        predictor: of TIFF; what isn't known counts as none.
    """
    checksum = 1
    height, width = planes[0].shape
    rows = max(_SLAB // width, 1)
    for row in range(0, height, rows):
        slab = np.stack([plane[row : row + rows] for plane in planes], axis=-1)
        checksum = adler32(_predicted(slab, predictor).reshape(-1).view(np.uint8), checksum)
    return checksum


def _predicted(slab: NDArray[Any], predictor: int) -> NDArray[Any]:
    """What a predictor makes of rows (height, width, samples): as many bytes, contiguous."""
    if predictor == _DIFFERENCES:
        words = slab.view(f"u{slab.itemsize}")
        return np.diff(words, axis=1, prepend=np.zeros_like(words[:, :1]))
    if predictor == _FLOATING:
        height, width, samples = slab.shape
        # Of each row, first all highest bytes, and so on down; then differences between these.
        parts = slab.astype(slab.dtype.newbyteorder(">")).view(np.uint8)
        parts = parts.reshape(height, width * samples, slab.itemsize).transpose(0, 2, 1)
        row = np.ascontiguousarray(parts).reshape(height, -1, samples)
        return np.diff(row, axis=1, prepend=np.zeros_like(row[:, :1]))
    return slab
