"""ONNX models give what their networks give, and open no files but the bundle's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import yaml

from geostudio_dagster.errors import TaskError
from geostudio_dagster.models.bundle import MANIFEST, Bundle, load_bundle
from geostudio_dagster.models.runtime import load_runtime
from geostudio_dagster.prediction import PredictOptions, predict
from geostudio_dagster_tests.prediction.builders import (
    Convolutions,
    noise,
    read,
    whole_forward,
    write_bundle,
    write_raster,
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("onnx") / "b", Convolutions(3, 4), runtime="onnx")


def listed(folder: Path, **keys: object) -> Bundle:
    """The bundle with further keys in its manifest."""
    path = folder / MANIFEST
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | keys))
    return load_bundle(folder)


def outside(folder: Path, location: str, bundle: Bundle) -> Path:
    """A copy of the bundle whose graph keeps its weights in another file."""
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_bytes((bundle.folder / MANIFEST).read_bytes())
    model = onnx.load(bundle.weights_path)
    onnx.save_model(
        model,
        folder / bundle.manifest.weights,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    text = (folder / bundle.manifest.weights).read_bytes()
    changed = onnx.ModelProto.FromString(text)
    for tensor in changed.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    (folder / bundle.manifest.weights).write_bytes(changed.SerializeToString())
    return folder


@pytest.mark.parametrize("threads", [1, 2])
def test_a_scene_is_what_the_network_makes_of_it(
    tmp_path: Path, bundle: Bundle, threads: int
) -> None:
    pixels = np.random.default_rng(0).normal(size=(3, 150, 90)).astype(np.float32)
    scene = write_raster(tmp_path / "s.tif", pixels)
    options = PredictOptions(precision="auto", workers=2, threads=threads)
    report = predict(
        scene,
        listed_trim(tmp_path, bundle),
        tmp_path / "o.tif",
        scratch=tmp_path,
        options=options,
    )
    assert report.dtype == "float32", "onnxruntime computes as the graph says"
    expected = whole_forward(Convolutions(3, 4), pixels)
    np.testing.assert_allclose(read(tmp_path / "o.tif"), expected, atol=2e-5)


def listed_trim(tmp_path: Path, bundle: Bundle) -> Bundle:
    """The bundle trimmed by its receptive field, which makes tiling exact."""
    folder = tmp_path / "trimmed"
    folder.mkdir()
    for path in bundle.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return listed(folder, patch={"size": 32, "overlap": 8, "trim": 3})


def test_a_fixed_batch_size_is_found(tmp_path: Path) -> None:
    fixed = write_bundle(tmp_path / "b", Convolutions(3, 4), runtime="onnx", batch=3)
    model = load_runtime(fixed)
    assert (model.batch_size, model.channels, model.device) == (3, 4, "cpu")
    pixels = noise(3, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(model(pixels), Convolutions(3, 4)(pixels), atol=1e-5, rtol=1e-5)


def test_a_wrong_band_count_is_one_clear_error(tmp_path: Path) -> None:
    wrong = write_bundle(tmp_path / "b", Convolutions(3, 4), runtime="onnx")
    bands = [{"name": name} for name in "abcd"]
    with pytest.raises(TaskError, match="does not take 4 planes of 32 x 32 pixels") as caught:
        load_runtime(listed(wrong.folder, bands=bands))
    assert caught.value.code == "model_unusable"


def test_what_is_no_graph_is_one_clear_error(tmp_path: Path, bundle: Bundle) -> None:
    (tmp_path / MANIFEST).write_bytes((bundle.folder / MANIFEST).read_bytes())
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(TaskError, match=r"model\.onnx of model test-model can't be loaded as onnx"):
        load_runtime(load_bundle(tmp_path))


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/hostname", "a/../../weights.bin"])
def test_weights_outside_the_bundle_are_refused(
    tmp_path: Path, bundle: Bundle, location: str
) -> None:
    folder = outside(tmp_path / "b", location, bundle)
    (folder / "weights.bin").rename(tmp_path / "weights.bin")
    with pytest.raises(TaskError, match="outside the bundle's folder"):
        load_runtime(load_bundle(folder))


def test_weights_behind_a_link_out_of_the_bundle_are_refused(
    tmp_path: Path, bundle: Bundle
) -> None:
    folder = outside(tmp_path / "b", "weights.bin", bundle)
    (folder / "weights.bin").rename(tmp_path / "weights.bin")
    (folder / "weights.bin").symlink_to(tmp_path / "weights.bin")
    with pytest.raises(TaskError, match="outside the bundle's folder"):
        load_runtime(listed(folder, files=["weights.bin"]))


def test_weights_beside_the_graph_are_files_of_the_bundle(tmp_path: Path, bundle: Bundle) -> None:
    folder = outside(tmp_path / "b", "weights.bin", bundle)
    with pytest.raises(TaskError, match="list it under files"):
        load_runtime(load_bundle(folder))
    whole = listed(folder, files=["weights.bin"])
    pixels = noise(2, 3, 32, 32)
    with torch.inference_mode():
        expected = load_runtime(bundle)(pixels)
    torch.testing.assert_close(load_runtime(whole)(pixels), expected)
    (folder / "weights.bin").write_bytes(bytes(10_000))
    assert load_bundle(folder).digest != whole.digest


@pytest.fixture
def two_inputs(tmp_path: Path, bundle: Bundle) -> Path:
    """A bundle whose graph puts the inputs optical and radar, two bands and one, together."""
    folder = tmp_path / "two"
    folder.mkdir()
    (folder / MANIFEST).write_bytes((bundle.folder / MANIFEST).read_bytes())
    save_concat(folder / "model.onnx", {"optical": 2, "radar": 1}, onnx.TensorProto.FLOAT)
    return folder


def save_concat(path: Path, bands: dict[str, int], dtype: int) -> None:
    """A graph that puts its inputs, (2, bands, 32, 32) each, together."""
    inputs = [
        onnx.helper.make_tensor_value_info(name, dtype, (2, count, 32, 32))
        for name, count in bands.items()
    ]
    output = onnx.helper.make_tensor_value_info("y", dtype, (2, sum(bands.values()), 32, 32))
    node = onnx.helper.make_node("Concat", list(bands), ["y"], axis=1)
    graph = onnx.helper.make_graph([node], "g", inputs, [output])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)


def test_inputs_named_like_modalities_get_their_bands(two_inputs: Path) -> None:
    names = [("radar", "vv"), ("optical", "a"), ("optical", "b")]
    bands = [{"modality": modality, "name": name} for modality, name in names]
    model = load_runtime(listed(two_inputs, bands=bands))
    assert (model.batch_size, model.channels) == (2, 3)
    pixels = noise(2, 3, 32, 32)
    torch.testing.assert_close(model(pixels), pixels[:, [1, 2, 0]])
    renamed = [band | {"modality": band["modality"].upper()} for band in bands]
    with pytest.raises(TaskError, match="has the inputs optical, radar, but the manifest the"):
        load_runtime(listed(two_inputs, bands=renamed))


def test_several_inputs_without_modalities_are_refused(two_inputs: Path) -> None:
    with pytest.raises(TaskError, match=r"has 2 inputs \(optical, radar\); it must have one"):
        load_runtime(load_bundle(two_inputs))


def test_double_precision_inputs_are_refused(two_inputs: Path) -> None:
    save_concat(two_inputs / "model.onnx", {"x": 3}, onnx.TensorProto.DOUBLE)
    with pytest.raises(TaskError, match=r"takes tensor\(double\) as x; it must take float32"):
        load_runtime(load_bundle(two_inputs))
