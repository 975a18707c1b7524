"""Tunes as GEOStudio leaves them give what TerraTorch itself gives."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from geostudio_dagster.errors import TaskError
from geostudio_dagster.models.bundle import Bundle, load_bundle
from geostudio_dagster.models.runtime import load_runtime
from geostudio_dagster.prediction import PredictOptions, predict
from geostudio_dagster_tests.models.tunes import BANDS, CKPT, MEANS, SIZE, STDS, make_tune
from geostudio_dagster_tests.prediction.builders import read, write_raster


@pytest.fixture(scope="module")
def segmentation(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Any]:
    return make_tune(tmp_path_factory.mktemp("tunes") / "segmentation", "segmentation")


def own_forward(module: Any, dates: list[np.ndarray]) -> np.ndarray:
    """TerraTorch's output for one patch, normalised as its data module does it."""
    means = np.array(MEANS, np.float32)[:, None, None]
    stds = np.array(STDS, np.float32)[:, None, None]
    stack = np.stack([(pixels.astype(np.float32) - means) / stds for pixels in dates], axis=1)
    torch.set_float32_matmul_precision("highest")  # importing terratorch makes it "medium"
    with torch.inference_mode():
        batch = torch.from_numpy(stack if len(dates) > 1 else stack[:, 0])[None]
        output: np.ndarray = module(batch).output[0].numpy()
    return output


def patches(number: int) -> list[np.ndarray]:
    rng = np.random.default_rng(number)
    return [rng.integers(1, 4000, (4, SIZE, SIZE)).astype(np.uint16) for _ in range(number)]


def test_a_segmentation_is_what_terratorch_itself_gives(
    tmp_path: Path, segmentation: tuple[Bundle, Any]
) -> None:
    bundle, module = segmentation
    [pixels] = patches(1)
    scene = write_raster(tmp_path / "s.tif", pixels[::-1], names=BANDS[::-1])
    predict(scene, bundle, tmp_path / "o.tif", scratch=tmp_path)
    expected = own_forward(module, [pixels]).argmax(axis=0)
    np.testing.assert_array_equal(read(tmp_path / "o.tif", 1), expected)
    assert len(np.unique(expected)) == 3, "a constant map would prove nothing"


def test_a_regression_is_what_terratorch_itself_gives(tmp_path: Path) -> None:
    bundle, module = make_tune(tmp_path / "tune", "regression")
    [pixels] = patches(1)
    scene = write_raster(tmp_path / "s.tif", pixels, names=BANDS)
    predict(scene, bundle, tmp_path / "o.tif", scratch=tmp_path)
    expected = own_forward(module, [pixels])
    np.testing.assert_allclose(read(tmp_path / "o.tif", 1), expected, atol=1e-4)


def test_exact_stays_exact_after_terratorch_was_imported(
    tmp_path: Path, segmentation: tuple[Bundle, Any]
) -> None:
    torch.set_float32_matmul_precision("medium")
    [pixels] = patches(1)
    scene = write_raster(tmp_path / "s.tif", np.tile(pixels, (1, 2, 3)), names=BANDS)
    outputs = []
    for batch_size in (1, 5):
        options = PredictOptions(batch_size=batch_size)
        predict(scene, segmentation[0], tmp_path / "o.tif", scratch=tmp_path, options=options)
        outputs.append(read(tmp_path / "o.tif", 1))
    np.testing.assert_array_equal(*outputs)


def test_several_dates_are_what_terratorch_itself_gives(tmp_path: Path) -> None:
    bundle, module = make_tune(tmp_path / "tune", "segmentation", dates=2)
    dates = patches(2)
    scenes = [
        write_raster(tmp_path / f"{n}.tif", date, names=BANDS) for n, date in enumerate(dates)
    ]
    predict(scenes, bundle, tmp_path / "o.tif", scratch=tmp_path)
    expected = own_forward(module, dates).argmax(axis=0)
    np.testing.assert_array_equal(read(tmp_path / "o.tif", 1), expected)


class Planted:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.path,)


def altered(tmp_path: Path, bundle: Bundle) -> Path:
    """A copy of the bundle's folder, to be spoiled."""
    folder = tmp_path / "altered"
    folder.mkdir()
    for path in bundle.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_checkpoints_run_no_code_as_they_load(
    tmp_path: Path, segmentation: tuple[Bundle, Any]
) -> None:
    folder = altered(tmp_path, segmentation[0])
    torch.save({"state_dict": {}, "x": Planted(tmp_path / "planted")}, folder / CKPT)
    with pytest.raises(TaskError, match=r"epoch7\.ckpt holds getattr, which is not loaded"):
        load_runtime(load_bundle(folder))
    assert not (tmp_path / "planted").exists()
    assert pickle.dumps(Planted(tmp_path / "planted"))


def test_a_checkpoint_of_another_model_is_one_clear_error(
    tmp_path: Path, segmentation: tuple[Bundle, Any]
) -> None:
    folder = altered(tmp_path, segmentation[0])
    torch.save({"state_dict": {"model.x": torch.zeros(1)}}, folder / CKPT)
    with pytest.raises(TaskError, match=r"not fit the model in config_deploy\.yaml: .*Missing"):
        load_runtime(load_bundle(folder))


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"class_path": "subprocess.Popen", "init_args": {"args": ["true"]}}, "names subprocess"),
        ({"class_path": "terratorch.tasksx.A", "init_args": {}}, "names terratorch.tasksx.A"),
        ({}, "has no section model"),
        ({"class_path": "terratorch.tasks.NoSuchTask", "init_args": {}}, "NoSuchTask"),
    ],
)
def test_configurations_may_name_tasks_only(
    tmp_path: Path, segmentation: tuple[Bundle, Any], section: dict[str, Any], words: str
) -> None:
    folder = altered(tmp_path, segmentation[0])
    (folder / "config_deploy.yaml").write_text(yaml.safe_dump({"model": section}))
    with pytest.raises(TaskError) as caught:
        load_runtime(load_bundle(folder))
    assert caught.value.code == "model_unusable"
    assert words in str(caught.value)
