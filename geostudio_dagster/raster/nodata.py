"""Values that stand for no data, as the pixels of a type can have them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


def representable(value: float | None, dtype: DTypeLike) -> float | int | None:
    """The value where a pixel can have it, else None; a whole number where pixels are such.

    Compared with an array of integers, a float would have all of them converted to float64.
    """
    kind = np.dtype(dtype)
    if value is None or kind.kind == "f":
        return value
    limits = np.iinfo(kind)
    whole = math.isfinite(value) and value == int(value)
    return int(value) if whole and limits.min <= value <= limits.max else None


def told_apart(values: NDArray[Any], nodata: float) -> NDArray[Any]:
    """Floating-point values, with those that GDAL takes for ``nodata`` moved to above these.

    GDAL compares by ``abs(a - b) < 2 * epsilon * abs(a + b)`` (its ARE_REAL_EQUAL), so that the
    next number would not do. A copy where any are moved.
    """
    kind = values.dtype.type
    if not abs(nodata) <= np.finfo(kind).max:
        return values
    near = 4 * float(np.finfo(kind).eps) * abs(nodata)
    taken = np.abs(values - kind(nodata)) <= near
    if not taken.any():
        return values
    above = max(kind(nodata + 2 * near), np.nextafter(kind(nodata), kind(np.inf)))
    return np.where(taken, above, values)
