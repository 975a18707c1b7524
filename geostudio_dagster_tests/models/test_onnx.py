"""ONNX models give what their networks give, and open no files but the bundle's."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import rasterio
import torch
import yaml

from geostudio_dagster.errors import TaskError
from geostudio_dagster.models.bundle import MANIFEST, Bundle, OnnxEngine, load_bundle
from geostudio_dagster.models.cache import MODELS
from geostudio_dagster.models.onnx import load_onnx
from geostudio_dagster.models.runtime import load_runtime
from geostudio_dagster.prediction import PredictOptions, predict
from geostudio_dagster.prediction.options import Precision
from geostudio_dagster_tests.models.onnx_graphs import outside, save_concat, save_graph
from geostudio_dagster_tests.prediction.builders import (
    Convolutions,
    noise,
    read,
    whole_forward,
    write_bundle,
    write_raster,
)

ENGINES: tuple[OnnxEngine, ...] = ("onnxruntime", "openvino")

each_engine = pytest.mark.parametrize("engine", ENGINES)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("onnx") / "b", Convolutions(3, 4), runtime="onnx")


def listed(folder: Path, **keys: object) -> Bundle:
    """The bundle with further keys in its manifest."""
    path = folder / MANIFEST
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | keys))
    return load_bundle(folder)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("engine", "precision"),
    [("onnxruntime", "auto"), ("onnxruntime", "exact"), ("openvino", "exact")],
)
def test_a_scene_is_what_the_network_makes_of_it(
    tmp_path: Path, bundle: Bundle, threads: int, engine: OnnxEngine, precision: Precision
) -> None:
    pixels = np.random.default_rng(0).normal(size=(3, 150, 90)).astype(np.float32)
    scene = write_raster(tmp_path / "s.tif", pixels)
    options = PredictOptions(precision=precision, workers=2, threads=threads, onnx_engine=engine)
    report = predict(
        scene,
        listed_trim(tmp_path, bundle),
        tmp_path / "o.tif",
        scratch=tmp_path,
        options=options,
    )
    # onnxruntime computes as the graph says; OpenVINO would take bfloat16 if it were let.
    assert report.dtype == "float32"
    assert report.engine == engine
    assert report.versions[engine] == importlib.metadata.version(engine)
    with rasterio.open(tmp_path / "o.tif") as file:
        assert file.tags()["GEOSTUDIO_ENGINE"] == engine
        assert file.tags()["GEOSTUDIO_TUNING"] == "none"  # which is of torch's networks
    expected = whole_forward(Convolutions(3, 4), pixels)
    np.testing.assert_allclose(read(tmp_path / "o.tif"), expected, atol=2e-5)


def test_openvino_takes_bfloat16_where_the_processor_has_it(tmp_path: Path, bundle: Bundle) -> None:
    pixels = np.random.default_rng(0).normal(size=(3, 150, 90)).astype(np.float32)
    scene = write_raster(tmp_path / "s.tif", pixels)
    outputs = []
    for number in range(2):
        target = tmp_path / f"{number}.tif"
        options = PredictOptions(precision="auto", onnx_engine="openvino")
        report = predict(
            scene, listed_trim(tmp_path / str(number), bundle), target, scratch=tmp_path,
            options=options,
        )  # fmt: skip
        outputs.append(target.read_bytes())
    native = load_runtime(bundle, onnx_engine="openvino").autocasts
    assert report.dtype == ("bfloat16" if native else "float32")
    assert outputs[0] == outputs[1]
    expected = whole_forward(Convolutions(3, 4), pixels)
    error = np.abs(read(tmp_path / "0.tif") - expected).max() / np.abs(expected).max()
    assert error < 0.02
    assert (error > 1e-4) == native


def test_openvino_follows_the_callers_precision(bundle: Bundle) -> None:
    model = load_runtime(bundle, onnx_engine="openvino")
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = Convolutions(3, 4)(pixels).detach()
    for _ in range(2):
        torch.testing.assert_close(model(pixels), expected, atol=2e-5, rtol=1e-5)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model(pixels)
        torch.testing.assert_close(rounded, expected, atol=0.02 * expected.abs().max(), rtol=0)


@pytest.mark.parametrize(("batch", "workers", "threads"), [(1, 1, 1), (3, 2, 1), (8, 3, 2)])
def test_how_openvino_is_asked_changes_a_scene_by_rounding_alone(
    tmp_path: Path, bundle: Bundle, batch: int, workers: int, threads: int
) -> None:
    pixels = np.random.default_rng(0).normal(size=(3, 150, 90)).astype(np.float32)
    scene = write_raster(tmp_path / "s.tif", pixels)
    given = PredictOptions(
        batch_size=batch, workers=workers, threads=threads, onnx_engine="openvino"
    )
    for name, options in (("a", PredictOptions(onnx_engine="openvino")), ("b", given)):
        predict(scene, bundle, tmp_path / f"{name}.tif", scratch=tmp_path, options=options)
    np.testing.assert_allclose(read(tmp_path / "a.tif"), read(tmp_path / "b.tif"), atol=1e-5)


def test_openvino_is_taken_where_it_is_installed(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_runtime(bundle).engine == "openvino"
    assert load_runtime(bundle, onnx_engine="onnxruntime").engine == "onnxruntime"
    monkeypatch.setitem(sys.modules, "openvino", None)  # as Python has it for what isn't there
    assert load_runtime(bundle).engine == "onnxruntime"
    with pytest.raises(TaskError, match=r"install geostudio-dagster\[openvino\]") as caught:
        load_runtime(bundle, onnx_engine="openvino")
    assert caught.value.code == "no_such_engine"


def test_openvino_that_does_not_start_is_left_to_onnxruntime(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "openvino").mkdir()
    (tmp_path / "openvino" / "__init__.py").write_text("raise ImportError('libopenvino.so')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "openvino"]:
        monkeypatch.delitem(sys.modules, name)
    assert load_runtime(bundle).engine == "onnxruntime"
    with pytest.raises(TaskError, match=r"does not start here \(libopenvino\.so\)") as caught:
        load_runtime(bundle, onnx_engine="openvino")
    assert caught.value.code == "no_such_engine"


def test_openvino_compiles_once(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openvino

    compiled: list[object] = []
    compile_model = openvino.Core.compile_model

    def counted(*args: Any, **kwargs: Any) -> Any:
        compiled.append(args)
        return compile_model(*args, **kwargs)

    monkeypatch.setattr(openvino.Core, "compile_model", counted)
    MODELS.clear()
    scene = write_raster(tmp_path / "s.tif", np.ones((3, 150, 90), np.float32))
    predict(scene, bundle, tmp_path / "o.tif", scratch=tmp_path)
    assert len(compiled) == 1


def test_openvino_by_name_is_the_processor_beside_a_gpu(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    scene = write_raster(tmp_path / "s.tif", np.ones((3, 150, 90), np.float32))
    options = PredictOptions(onnx_engine="openvino")
    report = predict(scene, bundle, tmp_path / "o.tif", scratch=tmp_path, options=options)
    assert (report.engine, report.device) == ("openvino", "cpu")
    told = PredictOptions(onnx_engine="openvino", device="cuda")
    with pytest.raises(TaskError, match="cuda"):
        predict(scene, bundle, tmp_path / "o.tif", scratch=tmp_path, options=told)


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="it can use a GPU"
)
def test_openvino_is_taken_where_onnxruntime_cannot_use_the_gpu(bundle: Bundle) -> None:
    assert load_onnx(bundle, "cuda").engine == "openvino"
    assert load_onnx(bundle, "cuda", "onnxruntime").engine == "onnxruntime"


def test_openvino_reports_to_nobody_and_leaves_nothing_in_the_home_folder(
    tmp_path: Path, bundle: Bundle
) -> None:
    script = (
        "import sys, threading\n"
        "from pathlib import Path\n"
        "from geostudio_dagster.models.bundle import load_bundle\n"
        "from geostudio_dagster.models.runtime import load_runtime\n"
        "model = load_runtime(load_bundle(Path(sys.argv[1])), onnx_engine='openvino')\n"
        "print(model.engine, sys.modules['openvino_telemetry'], threading.active_count())\n"
    )
    # Machines of continuous integration are left alone by openvino itself.
    environment = {key: value for key, value in os.environ.items() if key != "CI"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(bundle.folder)],
        env=environment | {"HOME": str(tmp_path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "openvino None 1\n"
    assert not list(tmp_path.iterdir())


def test_openvino_computes_on_the_processor_only(bundle: Bundle) -> None:
    with pytest.raises(TaskError, match="on the processor only, not on cuda:1"):
        load_onnx(bundle, "cuda:1", "openvino")


def test_what_openvino_does_not_know_is_left_to_onnxruntime(tmp_path: Path, bundle: Bundle) -> None:
    (tmp_path / MANIFEST).write_bytes((bundle.folder / MANIFEST).read_bytes())
    node = onnx.helper.make_node(
        "Scaler", ["x"], ["y"], domain="ai.onnx.ml", offset=[1.0], scale=[2.0]
    )
    save_graph(tmp_path / "model.onnx", node, {"x": 3})
    model = load_runtime(load_bundle(tmp_path))
    assert model.engine == "onnxruntime"
    pixels = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(pixels), 2 * (pixels - 1))
    sentence = (
        "can't be run by OpenVINO: No conversion rule found for operations: "
        r"ai\.onnx\.ml\.Scaler\.$"
    )
    with pytest.raises(TaskError, match=sentence):
        load_runtime(load_bundle(tmp_path), onnx_engine="openvino")


def test_what_openvino_compiles_but_cannot_run_is_left_to_onnxruntime(
    tmp_path: Path, bundle: Bundle
) -> None:
    (tmp_path / MANIFEST).write_bytes((bundle.folder / MANIFEST).read_bytes())
    # The largest of as many values as are not zero: of an empty patch, none.
    nodes = [
        onnx.helper.make_node("NonZero", ["x"], ["places"]),
        onnx.helper.make_node("Shape", ["places"], ["count"], start=1),
        onnx.helper.make_node("Clip", ["count", "", "width"], ["most"]),
        onnx.helper.make_node("TopK", ["x", "most"], ["largest", "where"], axis=3),
        onnx.helper.make_node("ReduceSum", ["largest"], ["sum"], keepdims=0),
        onnx.helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    shape = (2, 3, 32, 32)
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in "xy"
    ]
    width = onnx.numpy_helper.from_array(np.array(32, np.int64), "width")
    graph = onnx.helper.make_graph(nodes, "g", values[:1], values[1:], [width])
    opset = [onnx.helper.make_opsetid("", 17)]
    path = tmp_path / "model.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    model = load_runtime(load_bundle(tmp_path))
    assert model.engine == "onnxruntime"
    pixels = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(pixels), pixels + pixels.sum(), atol=1e-3, rtol=0)
    with pytest.raises(TaskError, match="does not take 3 planes of 32 x 32 pixels"):
        load_runtime(load_bundle(tmp_path), onnx_engine="openvino")


def listed_trim(tmp_path: Path, bundle: Bundle) -> Bundle:
    """The bundle trimmed by its receptive field, which makes tiling exact."""
    folder = tmp_path / "trimmed"
    folder.mkdir(parents=True)
    for path in bundle.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return listed(folder, patch={"size": 32, "overlap": 8, "trim": 3})


@each_engine
def test_a_fixed_batch_size_is_found(tmp_path: Path, engine: OnnxEngine) -> None:
    fixed = write_bundle(tmp_path / "b", Convolutions(3, 4), runtime="onnx", batch=3)
    model = load_runtime(fixed, onnx_engine=engine)
    assert (model.batch_size, model.channels, model.device) == (3, 4, "cpu")
    pixels = noise(3, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(model(pixels), Convolutions(3, 4)(pixels), atol=1e-5, rtol=1e-5)


@each_engine
def test_a_wrong_band_count_is_one_clear_error(tmp_path: Path, engine: OnnxEngine) -> None:
    wrong = write_bundle(tmp_path / "b", Convolutions(3, 4), runtime="onnx")
    bands = [{"name": name} for name in "abcd"]
    with pytest.raises(TaskError, match="does not take 4 planes of 32 x 32 pixels") as caught:
        load_runtime(listed(wrong.folder, bands=bands), onnx_engine=engine)
    assert caught.value.code == "model_unusable"
    assert "Exception from" not in str(caught.value)


@each_engine
def test_what_is_no_graph_is_one_clear_error(
    tmp_path: Path, bundle: Bundle, engine: OnnxEngine
) -> None:
    (tmp_path / MANIFEST).write_bytes((bundle.folder / MANIFEST).read_bytes())
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(TaskError, match=r"model\.onnx of model test-model can't be loaded as onnx"):
        load_runtime(load_bundle(tmp_path), onnx_engine=engine)


@each_engine
@pytest.mark.parametrize("location", ["../weights.bin", "/etc/hostname", "a/../../weights.bin"])
def test_weights_outside_the_bundle_are_refused(
    tmp_path: Path, bundle: Bundle, location: str, engine: OnnxEngine
) -> None:
    folder = outside(tmp_path / "b", location, bundle)
    (folder / "weights.bin").rename(tmp_path / "weights.bin")
    with pytest.raises(TaskError, match="outside the bundle's folder"):
        load_runtime(load_bundle(folder), onnx_engine=engine)


def test_weights_behind_a_link_out_of_the_bundle_are_refused(
    tmp_path: Path, bundle: Bundle
) -> None:
    folder = outside(tmp_path / "b", "weights.bin", bundle)
    (folder / "weights.bin").rename(tmp_path / "weights.bin")
    (folder / "weights.bin").symlink_to(tmp_path / "weights.bin")
    with pytest.raises(TaskError, match="outside the bundle's folder"):
        load_runtime(listed(folder, files=["weights.bin"]))


@each_engine
def test_weights_beside_the_graph_are_files_of_the_bundle(
    tmp_path: Path, bundle: Bundle, engine: OnnxEngine
) -> None:
    folder = outside(tmp_path / "b", "weights.bin", bundle)
    with pytest.raises(TaskError, match="list it under files"):
        load_runtime(load_bundle(folder), onnx_engine=engine)
    whole = listed(folder, files=["weights.bin"])
    pixels = noise(2, 3, 32, 32)
    with torch.inference_mode():
        expected = load_runtime(bundle, onnx_engine=engine)(pixels)
    torch.testing.assert_close(load_runtime(whole, onnx_engine=engine)(pixels), expected)
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


@each_engine
def test_inputs_named_like_modalities_get_their_bands(two_inputs: Path, engine: OnnxEngine) -> None:
    names = [("radar", "vv"), ("optical", "a"), ("optical", "b")]
    bands = [{"modality": modality, "name": name} for modality, name in names]
    model = load_runtime(listed(two_inputs, bands=bands), onnx_engine=engine)
    assert (model.batch_size, model.channels) == (2, 3)
    pixels = noise(2, 3, 32, 32)
    torch.testing.assert_close(model(pixels), pixels[:, [1, 2, 0]])
    renamed = [band | {"modality": band["modality"].upper()} for band in bands]
    with pytest.raises(TaskError, match="has the inputs optical, radar, but the manifest the"):
        load_runtime(listed(two_inputs, bands=renamed), onnx_engine=engine)


def test_several_inputs_without_modalities_are_refused(two_inputs: Path) -> None:
    with pytest.raises(TaskError, match=r"has 2 inputs \(optical, radar\); it must have one"):
        load_runtime(load_bundle(two_inputs))


def test_double_precision_inputs_are_refused(two_inputs: Path) -> None:
    save_concat(two_inputs / "model.onnx", {"x": 3}, onnx.TensorProto.DOUBLE)
    with pytest.raises(TaskError, match=r"takes tensor\(double\) as x; it must take float32"):
        load_runtime(load_bundle(two_inputs))
