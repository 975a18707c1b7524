"""Multi-modal models get a dict by modality, from one file per modality or from one scene."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from geostudio_dagster.errors import InvalidRequest, TaskError
from geostudio_dagster.models.bundle import Bundle
from geostudio_dagster.prediction import predict
from geostudio_dagster_tests.models.tunes import OPTICAL, RADAR, SIZE, make_terramind
from geostudio_dagster_tests.prediction.builders import read, write_bundle, write_raster


@pytest.fixture(scope="module")
def terramind(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Any]:
    return make_terramind(tmp_path_factory.mktemp("tunes"))


def sensors(tmp_path: Path, names: bool = True) -> tuple[list[Path], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    optical = rng.integers(1, 4000, (4, SIZE, SIZE)).astype(np.uint16)
    radar = rng.normal(-12, 5, (2, SIZE, SIZE)).astype(np.float32)
    files = [
        write_raster(tmp_path / "s2.tif", optical, names=OPTICAL if names else ()),
        write_raster(tmp_path / "s1.tif", radar, names=RADAR if names else ()),
    ]
    return files, optical, radar


@pytest.mark.parametrize("names", [True, False])
def test_terramind_on_two_sensors_is_what_terratorch_itself_gives(
    tmp_path: Path, terramind: tuple[Bundle, Any], names: bool
) -> None:
    bundle, task = terramind
    files, optical, radar = sensors(tmp_path, names)
    predict(files, bundle, tmp_path / "o.tif", scratch=tmp_path)
    torch.set_float32_matmul_precision("highest")
    batch = {
        "S2L2A": torch.from_numpy((optical.astype(np.float32) - 1000) / 500)[None],
        "S1GRD": torch.from_numpy((radar + 12) / 5)[None],
    }
    with torch.inference_mode():
        expected = task(batch).output[0].argmax(dim=0).numpy()
    np.testing.assert_array_equal(read(tmp_path / "o.tif", 1), expected)
    assert len(np.unique(expected)) > 1, "a constant map would prove nothing"


def test_files_in_the_wrong_order_are_told_before_a_pixel_is_read(
    tmp_path: Path, terramind: tuple[Bundle, Any]
) -> None:
    files, _, _ = sensors(tmp_path)
    with pytest.raises(TaskError) as caught:
        predict(files[::-1], terramind[0], tmp_path / "o.tif", scratch=tmp_path)
    assert caught.value.code == "too_few_bands"
    assert "s1.tif has 2 bands (VV, VH), but the model needs 4: BLUE" in str(caught.value)
    assert not (tmp_path / "o.tif").exists()


class Contrast(nn.Module):
    """Change of the first band of a, and of b's, from the first date to the second."""

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        return torch.cat([x["a"][:, :1, 1] - x["a"][:, :1, 0], x["b"][:, :, 1]], dim=1)


@pytest.mark.parametrize("together", [True, False])
def test_several_dates_of_several_modalities(tmp_path: Path, together: bool) -> None:
    bands = [
        {"name": "x", "modality": "a"},
        {"name": "y", "modality": "a"},
        {"name": "z", "modality": "b"},
    ]
    bundle = write_bundle(tmp_path / "m", Contrast(), bands=bands, dates=2)
    pixels = np.random.default_rng(0).normal(size=(2, 3, 40, 40)).astype(np.float32)
    files = []
    for number, date in enumerate(pixels):
        parts = [date] if together else [date[:2], date[2:]]
        for part, planes in enumerate(parts):
            files.append(write_raster(tmp_path / f"{number}-{part}.tif", planes))
    predict(files, bundle, tmp_path / "o.tif", scratch=tmp_path)
    expected = np.stack([pixels[1, 0] - pixels[0, 0], pixels[1, 2]])
    np.testing.assert_allclose(read(tmp_path / "o.tif"), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("modalities", "words"),
    [
        (["a", None, "b"], "either every band has a modality, or none"),
        (["a", "b", "a"], "the bands of a modality must stand together"),
    ],
)
def test_modalities_that_make_no_dict_are_refused(
    tmp_path: Path, modalities: list[str | None], words: str
) -> None:
    bands = [
        {"name": f"B{n}"} | ({"modality": key} if key else {}) for n, key in enumerate(modalities)
    ]
    with pytest.raises(InvalidRequest, match=words):
        write_bundle(tmp_path / "m", Contrast(), bands=bands)
