"""The demo's scenes: real pixels at a made-up place, and a landscape that is made up whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
import spyndex

from geostudio_dagster.demo.scenes import SYNTHETIC_BANDS, spyndex_scene, synthetic_scene
from geostudio_dagster.storage import sha256_of


def test_the_real_scene_has_the_packages_pixels(tmp_path: Path) -> None:
    path = spyndex_scene(tmp_path / "deep" / "s2.tif")
    published = spyndex.datasets.open("sentinel")
    with rasterio.open(path) as scene:
        np.testing.assert_array_equal(scene.read(), published.values)
        assert scene.descriptions == tuple(published.band.values) == ("B02", "B03", "B04", "B08")
        assert scene.dtypes == ("uint16",) * 4
        assert scene.crs.to_epsg() == 32618
        assert scene.res == (10, 10)
        assert scene.nodata is None
        assert "nominal" in scene.tags()["GEOSTUDIO_NOTE"]
    assert [entry.name for entry in path.parent.iterdir()] == ["s2.tif"]


def test_the_made_up_scene(tmp_path: Path) -> None:
    path = synthetic_scene(tmp_path / "large.tif", size=1100, seed=3)
    with rasterio.open(path) as scene:
        assert (scene.width, scene.height) == (1100, 1100)
        assert scene.descriptions == SYNTHETIC_BANDS
        assert scene.nodata == 0
        assert scene.block_shapes == [(512, 512)] * 6
        assert "made up" in scene.tags()["GEOSTUDIO_NOTE"]
        pixels = scene.read()
    missing = (pixels == 0).any(axis=0)
    assert ((pixels == 0).all(axis=0) == missing).all()  # no hole in one band only
    assert 0.01 < missing.mean() < 0.1
    assert missing[0, 0]
    assert not missing[:, -1].any()
    edge = missing.sum(axis=1)
    assert (np.diff(edge) <= 0).all()  # slanted
    seen = pixels[:, ~missing]
    assert seen.min() >= 1
    assert seen.max() <= 10_000
    green, red, nir = (seen[band].astype(float) for band in (1, 2, 3))
    assert 0.01 < ((green - nir) / (green + nir) > 0).mean() < 0.2  # rivers and lakes
    assert 0.2 < ((nir - red) / (nir + red) > 0.6).mean() < 0.8  # crops and woods


def test_the_same_seed_is_the_same_file(tmp_path: Path) -> None:
    digests = [
        sha256_of(synthetic_scene(tmp_path / f"{n}.tif", size=600, seed=seed))
        for n, seed in enumerate((1, 1, 2))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_strips_do_not_show(tmp_path: Path) -> None:
    """Structure is global: the rows at the border of two strips differ as any two rows do."""
    with rasterio.open(synthetic_scene(tmp_path / "s.tif", size=1024)) as scene:
        band = scene.read(4).astype(float)
    steps = np.abs(np.diff(band, axis=0)).mean(axis=1)
    assert steps[511] < 2 * np.median(steps)
