"""Colours of pixels, whatever values a client gives its classes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from geostudio_dagster.gateway.rendering import paint
from geostudio_dagster.planning.output_styles import LEAST_CLASS, MOST_CLASS

VALUES = st.lists(st.integers(-3, 300), min_size=1, max_size=20, unique=True)


def _style(values: list[int]) -> dict[str, object]:
    classes = [
        {"value": value, "name": "", "colour": f"#{number + 1:06x}", "opacity": 1.0}
        for number, value in enumerate(values)
    ]
    return {"kind": "classes", "nodata": 255, "classes": classes}


@given(VALUES, arrays(np.int16, (3, 5), elements=st.integers(-5, 310)))
def test_each_class_has_its_colour_and_nothing_else_has_one(
    values: list[int], pixels: np.ndarray[tuple[int, int], np.dtype[np.int16]]
) -> None:
    colours, alpha = paint(_style(values), np.ma.MaskedArray(pixels[np.newaxis]))
    for place, pixel in np.ndenumerate(pixels):
        drawn = colours[(2, *place)] if alpha[place] else None
        assert drawn == (values.index(int(pixel)) + 1 if pixel in values else None)


def test_the_largest_values_that_pixels_can_hold_are_drawn() -> None:
    pixels = np.ma.MaskedArray(np.array([[[LEAST_CLASS, 0.5, np.nan, MOST_CLASS]]], np.float64))
    colours, alpha = paint(_style([MOST_CLASS, LEAST_CLASS]), pixels)
    assert alpha.tolist() == [[255, 0, 0, 255]]
    assert colours[2].tolist() == [[2, 0, 0, 1]]
