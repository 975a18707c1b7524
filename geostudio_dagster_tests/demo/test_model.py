"""The demo model: right on known spectra and real pixels, exact in tiles, always the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch

from geostudio_dagster.demo.model import RECEPTIVE_FIELD, demo_bundle, demo_network
from geostudio_dagster.demo.scenes import spyndex_scene
from geostudio_dagster.errors import InvalidRequest

WATER, BARE, SPARSE, DENSE, CLOUD = range(5)


def classes(reflectance: Any) -> np.ndarray[Any, Any]:
    """Classes of reflectances (bands, rows, columns)."""
    pixels = torch.as_tensor(np.asarray(reflectance, np.float32))[None]
    with torch.no_grad():
        return demo_network()(pixels)[0].argmax(0).numpy()


@pytest.mark.parametrize(
    ("spectrum", "expected"),
    [
        ((0.042, 0.038, 0.026, 0.015), WATER),
        ((0.06, 0.08, 0.07, 0.03), WATER),
        ((0.09, 0.125, 0.17, 0.25), BARE),
        ((0.15, 0.18, 0.20, 0.24), BARE),
        ((0.05, 0.085, 0.075, 0.20), SPARSE),
        ((0.033, 0.072, 0.042, 0.43), DENSE),
        ((0.023, 0.042, 0.026, 0.30), DENSE),
        ((0.52, 0.53, 0.54, 0.57), CLOUD),
        ((0.30, 0.30, 0.30, 0.32), CLOUD),
    ],
)
def test_known_spectra(spectrum: tuple[float, ...], expected: int) -> None:
    pixels = np.tile(np.array(spectrum)[:, None, None], (1, 9, 9))
    assert (classes(pixels) == expected).all()


def test_thresholds_are_where_they_are_said_to_be() -> None:
    for ndvi, expected in ((0.34, BARE), (0.36, SPARSE), (0.59, SPARSE), (0.61, DENSE)):
        red = 0.1
        nir = (red * (1 + ndvi) + ndvi * 1e-3) / (1 - ndvi)
        pixels = np.tile(np.array([0.05, 0.08, red, nir])[:, None, None], (1, 5, 5))
        assert (classes(pixels) == expected).all()


def test_nothing_breaks_it() -> None:
    for value in (0.0, -1.0, 1e-30, 1e6):
        assert np.isfinite(demo_network()(torch.full((1, 4, 8, 8), value)).numpy()).all()


def test_the_receptive_field() -> None:
    """One changed pixel changes nothing beyond its neighbours."""
    rng = torch.Generator().manual_seed(0)
    pixels = torch.rand(1, 4, 33, 33, generator=rng)
    other = pixels.clone()
    other[:, :, 16, 16] += 0.5
    changed = (demo_network()(pixels) != demo_network()(other)).any(dim=1)[0].nonzero()
    reach = RECEPTIVE_FIELD // 2
    assert changed.min() == 16 - reach
    assert changed.max() == 16 + reach
    bundle_trim = 8
    assert bundle_trim >= reach


def test_real_pixels(tmp_path: Path) -> None:
    with rasterio.open(spyndex_scene(tmp_path / "s2.tif")) as scene:
        found = classes(scene.read() * 1e-4)
    share = np.bincount(found.ravel(), minlength=5) / found.size
    assert found[4, 105] == WATER  # the reservoir at the top
    assert found[120, 36] == WATER  # the pond at the left
    assert (found[20:40, 170:190] == DENSE).all()  # forest
    assert (found[150:160, 130:140] == BARE).mean() > 0.9  # fields without crops
    assert share[WATER] < 0.01
    assert share[DENSE] == pytest.approx(0.37, abs=0.05)
    assert share[CLOUD] == 0


@pytest.mark.parametrize("runtime", ["torchscript", "torch_export"])
def test_exported_as_it_computes(runtime: Any, tmp_path: Path) -> None:
    bundle = demo_bundle(tmp_path / runtime, runtime)
    assert bundle.manifest.runtime == runtime
    if runtime == "torchscript":
        loaded: Any = torch.jit.load(bundle.weights_path)
    else:
        loaded = torch.export.load(bundle.weights_path).module()
    for batch in (1, 5):
        pixels = torch.rand(batch, 4, 256, 256, generator=torch.Generator().manual_seed(batch))
        torch.testing.assert_close(loaded(pixels), demo_network()(pixels), rtol=0, atol=1e-5)


@pytest.mark.parametrize("runtime", ["torchscript", "torch_export"])
def test_the_bundle_is_always_the_same(runtime: Any, tmp_path: Path) -> None:
    first = demo_bundle(tmp_path / "first", runtime)
    again = demo_bundle(tmp_path / "first", runtime)
    elsewhere = demo_bundle(tmp_path / "second", runtime)
    assert first == again
    assert first.digest == elsewhere.digest
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["first", "second"]


def test_another_bundle_is_not_overwritten(tmp_path: Path) -> None:
    demo_bundle(tmp_path / "model", "torch_export")
    with pytest.raises(InvalidRequest, match="another bundle"):
        demo_bundle(tmp_path / "model", "torchscript")


def test_what_the_map_needs(tmp_path: Path) -> None:
    manifest = demo_bundle(tmp_path / "model").manifest
    assert manifest.rgb_bands == (2, 1, 0)
    assert [item.value for item in manifest.classes] == [0, 1, 2, 3, 4]
    colours = np.array([item.rgba[:3] for item in manifest.classes], dtype=float)
    apart = np.linalg.norm(colours[:, None] - colours[None], axis=2)
    assert apart[~np.eye(5, dtype=bool)].min() > 60
    assert (manifest.patch.size, manifest.patch.overlap, manifest.patch.trim) == (256, 32, 8)
