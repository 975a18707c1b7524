"""A band per class: scaled, named, and of the same opinion as the class map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from rio_cogeo.cogeo import cog_validate

from geostudio_dagster.errors import InvalidRequest
from geostudio_dagster.prediction import PredictOptions, predict
from geostudio_dagster_tests.prediction.builders import (
    Convolutions,
    Identity,
    read,
    whole_forward,
    write_bundle,
    write_raster,
)
from geostudio_dagster_tests.prediction.test_command import call


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(2).normal(size=(3, 130, 170)).astype(np.float32)
    pixels[:, :40, :30] = np.nan
    return write_raster(tmp_path / "s.tif", pixels)


def test_probabilities_are_the_softmax_of_the_blended_scores(tmp_path: Path, scene: Path) -> None:
    network = Convolutions(3, 4)
    bundle = write_bundle(
        tmp_path / "b", network, classes=4, patch=(32, 8, 3), output="probabilities"
    )
    report = predict(scene, bundle, tmp_path / "o.tif", scratch=tmp_path)
    assert cog_validate(tmp_path / "o.tif", strict=True, quiet=True)[:2] == (True, [])
    with rasterio.open(tmp_path / "o.tif") as file:
        assert (file.count, set(file.dtypes), file.nodata) == (4, {"uint8"}, 255)
        assert file.descriptions == ("class 0", "class 1", "class 2", "class 3")
        assert file.scales == (0.005,) * 4
        assert file.offsets == (0,) * 4
        found = file.read()
    given = read(scene)
    invalid = np.isnan(given[0])
    np.testing.assert_array_equal(found == 255, np.broadcast_to(invalid, found.shape))
    scores = whole_forward(network, np.where(invalid, 0, given).astype(np.float32))
    expected = torch.softmax(torch.from_numpy(scores), dim=0).numpy()
    # Half a step of rounding, and float32.
    assert np.abs(found * 0.005 - expected)[:, ~invalid].max() < 0.0025 + 1e-5
    assert np.abs(found[:, ~invalid].sum(axis=0, dtype=int) - 200).max() <= 2
    assert (report.shape, report.class_counts) == ((4, 130, 170), None)
    assert report.nodata_fraction == 40 * 30 / (130 * 170)


def test_the_likeliest_class_is_the_one_of_the_map_however_the_work_is_cut(
    tmp_path: Path, scene: Path
) -> None:
    network = Convolutions(3, 4)
    as_map = write_bundle(tmp_path / "map", network, classes=4)
    bundle = write_bundle(tmp_path / "b", network, classes=4, output="probabilities")
    predict(scene, as_map, tmp_path / "m.tif", scratch=tmp_path)
    predict(scene, bundle, tmp_path / "o.tif", scratch=tmp_path)
    classes, found = read(tmp_path / "m.tif", 1), read(tmp_path / "o.tif")
    valid = classes != 255
    chosen = np.take_along_axis(found, np.where(valid, classes, 0)[None].astype(int), axis=0)[0]
    assert (chosen[valid] == found.max(axis=0)[valid]).all()
    window = (20, 30, 100, 90)
    options = PredictOptions(batch_size=7, memory=1)
    predict(scene, bundle, tmp_path / "w.tif", scratch=tmp_path, window=window, options=options)
    part = found[:, 30:120, 20:120].astype(int)
    assert np.abs(read(tmp_path / "w.tif").astype(int) - part).max() <= 1


def test_the_option_asks_for_them_whatever_the_bundle_says(tmp_path: Path, scene: Path) -> None:
    bundle = write_bundle(tmp_path / "b", Identity(), classes=3, task="segmentation")
    result = call(bundle.folder, [scene], tmp_path / "o.tif", "--probabilities")
    assert result.exit_code == 0, result.output
    pixels, found = read(scene), read(tmp_path / "o.tif")
    expected = np.rint(torch.softmax(torch.from_numpy(pixels), dim=0).numpy() * 200)
    valid = ~np.isnan(pixels[0])
    assert np.abs(found - expected)[:, valid].max() <= 1


def test_regressions_have_none(tmp_path: Path, scene: Path) -> None:
    bundle = write_bundle(tmp_path / "b", Identity())
    result = call(bundle.folder, [scene], tmp_path / "o.tif", "--probabilities")
    assert result.exit_code == 2
    assert "probabilities: model test-model gives none; leave the option out." in result.stderr
    with pytest.raises(InvalidRequest, match="output: probabilities is for a segmentation"):
        write_bundle(tmp_path / "c", Identity(), output="probabilities")
