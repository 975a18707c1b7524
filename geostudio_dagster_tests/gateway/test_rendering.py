"""Colours of pixels, whatever values a client gives its classes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError

from geostudio_dagster.gateway.rendering import paint
from geostudio_dagster.gateway.v2.inference_schemas import GeoServerPush
from geostudio_dagster.gateway.v2.pushed_layers import pushed_layers
from geostudio_dagster.planning.output_styles import LEAST_CLASS, MOST_CLASS, ClassStyle

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


def test_of_two_classes_of_one_value_the_first_is_drawn() -> None:
    colours, _ = paint(_style([4, 7, 4]), np.ma.MaskedArray(np.full((1, 1, 1), 4, np.uint8)))
    assert colours[2].tolist() == [[1]]


@pytest.mark.parametrize("value", [LEAST_CLASS - 1, MOST_CLASS + 1, 10**30])
def test_a_class_that_no_pixel_can_have_is_refused(value: int) -> None:
    with pytest.raises(ValidationError, match=r"classes\.0\.value"):
        ClassStyle.model_validate(_style([value]))


@pytest.mark.parametrize(("value", "kind"), [(MOST_CLASS, "classes"), (MOST_CLASS + 1, None)])
def test_a_pushed_style_with_such_a_class_counts_as_none(value: int, kind: str | None) -> None:
    push = {
        "workspace": "geofm",
        "layer_name": "ships",
        "display_name": "Ships",
        "filepath_key": "",
        "file_suffix": "_ships",
        "geoserver_style": {"segmentation": [{"color": "#ff0000", "quantity": value}]},
    }
    (layer,) = pushed_layers([GeoServerPush.model_validate(push)])
    assert (layer["style"] and layer["style"]["kind"]) == kind
