from __future__ import annotations

import pytest

from geostudio_dagster.errors import TaskError
from geostudio_dagster.models.bundle import Band
from geostudio_dagster.raster.bands import choose_bands


def bands(*names: str, indices: bool = False) -> list[Band]:
    return [Band(name=name, index=2 * n if indices else None) for n, name in enumerate(names)]


def test_names_decide_whatever_case_and_order() -> None:
    assert choose_bands(bands("B04", "b02"), ["B02", "B03", "b04 "], "s.tif") == [2, 0]


def test_names_win_over_indices() -> None:
    assert choose_bands(bands("B03", "B02", indices=True), ["B02", "B03", "B04"], "s.tif") == [1, 0]


def test_indices_serve_scenes_without_names() -> None:
    assert choose_bands(bands("B02", "B03", indices=True), [None] * 4, "s.tif") == [0, 2]


def test_order_serves_scenes_with_just_enough_bands() -> None:
    assert choose_bands(bands("B02", "B03"), ["blue", "green"], "s.tif") == [0, 1]


def test_some_names_but_not_all_is_an_error_even_where_the_count_fits() -> None:
    with pytest.raises(TaskError) as caught:
        choose_bands(bands("B02", "B8A", indices=True), ["B02", "B03", "B04"], "s.tif")
    assert caught.value.code == "too_few_bands"
    assert str(caught.value) == (
        "s.tif has 3 bands (B02, B03, B04), but the model needs 2: B02, B8A. It lacks B8A. "
        "Give a scene with these bands, named like this."
    )


def test_too_few_bands_names_both_sides() -> None:
    with pytest.raises(TaskError, match=r"has 1 band \(unnamed band 1\), but the model needs 2"):
        choose_bands(bands("B02", "B03"), [None], "s.tif")
