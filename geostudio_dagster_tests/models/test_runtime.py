from __future__ import annotations

import json
import pickle
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from geostudio_dagster.errors import TaskError
from geostudio_dagster.models.bundle import load_bundle, with_patch
from geostudio_dagster.models.cache import ModelCache
from geostudio_dagster.models.runtime import Model, as_tensor, load_runtime
from geostudio_dagster.prediction import PredictOptions, predict
from geostudio_dagster_tests.prediction.builders import (
    Convolutions,
    Identity,
    noise,
    read,
    write_bundle,
    write_raster,
)


@pytest.mark.parametrize(
    ("runtime", "batch"), [("torchscript", None), ("torch_export", None), ("torch_export", 3)]
)
def test_runtimes_give_what_the_network_gives(
    tmp_path: Path, runtime: str, batch: int | None
) -> None:
    network = Convolutions(3, 4)
    bundle = write_bundle(tmp_path / "b", network, classes=4, runtime=runtime, batch=batch)
    model = load_runtime(bundle)
    assert (model.channels, model.batch_size) == (4, batch)
    pixels = noise(batch or 5, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(model(pixels), network(pixels), atol=1e-5, rtol=1e-5)


def test_a_fixed_batch_size_is_kept_whatever_is_asked(tmp_path: Path) -> None:
    network = Convolutions(3, 4)
    pixels = np.random.default_rng(0).normal(size=(3, 90, 70)).astype(np.float32)
    scene = write_raster(tmp_path / "s.tif", pixels)
    outputs = []
    for batch in (None, 3):
        bundle = write_bundle(tmp_path / f"b{batch}", network, runtime="torch_export", batch=batch)
        options = PredictOptions(batch_size=5)
        target = tmp_path / "o.tif"
        report = predict(scene, bundle, target, scratch=tmp_path, options=options)
        assert report.batch_size == (batch or 5)
        outputs.append(read(target))
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-5)


class OneLogit(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1]


def test_one_logit_makes_two_classes(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b", OneLogit(), bands=2, classes=2)
    pixels = np.random.default_rng(0).normal(size=(2, 40, 40)).astype(np.float32)
    scene = write_raster(tmp_path / "s.tif", pixels)
    predict(scene, bundle, tmp_path / "o.tif", scratch=tmp_path)
    np.testing.assert_array_equal(read(tmp_path / "o.tif", 1), pixels[0] > 0)


class Flat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=1)


class Downsampling(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(x, 2)


def test_outputs_without_channels_are_one_channel(tmp_path: Path) -> None:
    assert load_runtime(write_bundle(tmp_path / "b", Flat())).channels == 1


@pytest.mark.parametrize(
    ("network", "more", "words"),
    [
        (Convolutions(3, 4), {"classes": 3}, "gives 4 channels but its manifest has 3 classes"),
        (Convolutions(4, 3), {"classes": 3}, "does not take 3 planes of 32 x 32 pixels"),
        (Downsampling(), {}, "makes (1, 3, 16, 16) of (1, 3, 32, 32)"),
    ],
)
def test_models_that_are_not_what_the_manifest_says_are_refused(
    tmp_path: Path, network: nn.Module, more: dict[str, int], words: str
) -> None:
    with pytest.raises(TaskError) as caught:
        load_runtime(write_bundle(tmp_path / "b", network, **more))
    assert caught.value.code == "model_unusable"
    assert words in str(caught.value)


@pytest.mark.parametrize("runtime", ["torchscript", "torch_export"])
def test_weights_that_do_not_load_are_one_clear_error(tmp_path: Path, runtime: str) -> None:
    bundle = write_bundle(tmp_path / "b", Identity(), runtime=runtime)
    bundle.weights_path.write_bytes(b"no model")
    with pytest.raises(TaskError, match=f"of model test-model can't be loaded as {runtime}: "):
        load_runtime(bundle)


class Planted:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.path,)


def _sample_inputs(archive: dict[str, bytes], planted: bytes) -> None:
    [name] = [name for name in archive if name.endswith("sample_inputs/model.pt")]
    archive[name] = planted


def _pickled_weight(archive: dict[str, bytes], planted: bytes) -> None:
    [name] = [name for name in archive if name.endswith("model_weights_config.json")]
    config = json.loads(archive[name])
    weight = next(iter(config["config"].values()))
    weight["use_pickle"] = True
    archive[name] = json.dumps(config).encode()
    archive[name.replace("model_weights_config.json", weight["path_name"])] = planted


@pytest.mark.parametrize("plant", [_sample_inputs, _pickled_weight])
def test_exported_programs_run_no_code_as_they_load(
    tmp_path: Path, plant: Callable[[dict[str, bytes], bytes], None]
) -> None:
    bundle = write_bundle(tmp_path / "b", Convolutions(3, 1), runtime="torch_export")
    with zipfile.ZipFile(bundle.weights_path) as file:
        archive = {name: file.read(name) for name in file.namelist()}
    plant(archive, pickle.dumps(Planted(tmp_path / "planted")))
    with zipfile.ZipFile(bundle.weights_path, "w") as file:
        for name, content in archive.items():
            file.writestr(name, content)
    with pytest.raises(TaskError, match="can't be loaded as torch_export"):
        load_runtime(load_bundle(bundle.folder))
    assert not (tmp_path / "planted").exists()


def test_outputs_may_be_wrapped() -> None:
    tensor = torch.ones(1)

    class Wrapped:
        output = tensor

    for wrapped in (tensor, {"out": tensor}, {"x": tensor}, (tensor, 1), [Wrapped()], Wrapped()):
        assert as_tensor(wrapped) is tensor
    with pytest.raises(TypeError, match="returns str"):
        as_tensor("text")


def test_a_bundle_loads_once_also_from_many_threads(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b", Identity())
    cache = ModelCache()
    models: list[Model] = []
    threads = [
        threading.Thread(target=lambda: models.append(cache.get(bundle, "cpu"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(models) == 8
    assert len({id(model) for model in models}) == 1
    assert cache.loads == 1


def test_the_cache_forgets_what_was_used_longest_ago(tmp_path: Path) -> None:
    bundles = [write_bundle(tmp_path / str(n), Identity(), name=f"m{n}") for n in range(3)]
    cache = ModelCache(capacity=2)
    for number in (0, 1, 0, 2, 0):
        cache.get(bundles[number], "cpu")
    assert cache.loads == 3
    cache.get(bundles[1], "cpu")
    assert cache.loads == 4
    cache.clear()
    cache.get(bundles[1], "cpu")
    assert cache.loads == 5


def test_each_device_and_patch_size_has_a_model_of_its_own(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b", Identity())
    cache = ModelCache(capacity=4)
    for _ in range(2):
        assert cache.get(bundle, "cpu").device == "cpu"
        assert cache.get(bundle, "cpu:0").device == "cpu:0"
        cache.get(with_patch(bundle, 48), "cpu")
        assert cache.loads == 3


def test_all_predictions_of_a_process_share_one_load(tmp_path: Path) -> None:
    from geostudio_dagster.models.cache import MODELS

    bundle = write_bundle(tmp_path / "b", Identity(), name="shared")
    pixels = np.ones((3, 40, 40), np.float32)
    before = MODELS.loads
    for number in range(3):
        scene = write_raster(tmp_path / f"{number}.tif", pixels)
        predict(scene, bundle, tmp_path / "o.tif", scratch=tmp_path)
    assert MODELS.loads == before + 1
