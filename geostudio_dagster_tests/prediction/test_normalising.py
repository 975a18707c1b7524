"""Raw pixels of every type become the same float32 as one operation after another in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_st

from geostudio_dagster.prediction.normalising import Normalisation
from geostudio_dagster.raster.scene import Channel

TYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"]
SHAPE = (2, 3, 4, 5)
numbers = st.floats(-1e6, 1e6, width=32)


def channels(pairs: list[tuple[float, float]]) -> list[Channel]:
    return [Channel(0, band, None, *pair) for band, pair in enumerate(pairs, start=1)]


@pytest.mark.parametrize("kind", TYPES)
@given(data=st.data())
def test_to_the_bit(kind: str, data: st.DataObject) -> None:
    of_kind = numpy_st.from_dtype(np.dtype(kind), allow_nan=False, allow_infinity=False)
    if kind == "float64":
        of_kind = st.floats(-1e30, 1e30)
    raw = data.draw(numpy_st.arrays(kind, SHAPE, elements=of_kind))
    valid = data.draw(numpy_st.arrays(np.bool_, (2, 4, 5)))
    pairs = data.draw(st.lists(st.tuples(numbers, numbers), min_size=3, max_size=3))
    fill = data.draw(numbers)
    kept = raw.copy()
    with np.errstate(over="ignore", invalid="ignore"):
        expected = np.stack(
            [
                (raw[:, plane].astype(np.float32) - np.float32(centre)) * np.float32(gain)
                for plane, (centre, gain) in enumerate(pairs)
            ],
            axis=1,
        )
    expected[np.broadcast_to(~valid[:, None], SHAPE)] = fill
    normalise = Normalisation(channels(pairs), fill)
    seen = normalise(torch.from_numpy(raw), torch.from_numpy(valid)).numpy()
    assert seen.dtype == np.float32
    np.testing.assert_array_equal(seen, expected)
    np.testing.assert_array_equal(raw, kept)  # a batch may be computed again, in halves


def test_without_gaps_no_pixel_is_filled() -> None:
    raw = torch.arange(8, dtype=torch.int16).view(1, 2, 2, 2)
    seen = Normalisation(channels([(1.0, 2.0), (4.0, 0.5)]), fill=-1.0)(raw, None)
    assert seen[0, 0].flatten().tolist() == [-2.0, 0.0, 2.0, 4.0]
    assert seen[0, 1].flatten().tolist() == [0.0, 0.5, 1.0, 1.5]
