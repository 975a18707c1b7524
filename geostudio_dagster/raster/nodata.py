"""Values that stand for no data, as the pixels of a type can have them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import DTypeLike


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
