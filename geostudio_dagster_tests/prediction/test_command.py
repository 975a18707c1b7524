"""``geostudio-dagster predict``: the engine at a terminal, and what it says when it can't."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from torch import nn

from geostudio_dagster.prediction import PredictOptions
from geostudio_dagster.prediction.forward import choose_device
from geostudio_dagster_tests.conftest import write_scene
from geostudio_dagster_tests.prediction.builders import (
    Convolutions,
    read,
    write_bundle,
    write_raster,
)
from geostudio_dagster_tests.prediction.terminal import call, engine

STAGES = ("total", "model", "forward", "read", "normalise", "blend", "write", "cog", "stall")
FACTS = ("pixels", "patches", "batch_size", "stalls", "peak_rss", "device", "dtype", "versions")


def test_a_process_of_its_own_makes_what_the_pipeline_makes(
    bundle_folder: Path, scene: Path, folder: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "geostudio_dagster", "predict", "--model", str(bundle_folder)]
    command += ["--input", str(scene), "--output", str(folder / "o.tif"), "--json"]
    # No installation is needed, so none is made.
    home = tmp_path / "home"
    environment = os.environ | {"GEOSTUDIO_DATA_FOLDER": str(home)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert not home.exists()
    assert [item.name for item in folder.iterdir()] == ["o.tif"]
    assert (folder / "o.tif").read_bytes() == engine(bundle_folder, scene, tmp_path / "p.tif")
    assert set(FACTS) <= facts.keys()
    assert set(STAGES) <= facts["seconds"].keys()
    assert facts["pixels"] == 600 * 600
    assert facts["patches"] == 9
    assert facts["stalls"] >= 1
    assert facts["dtype"] == "float32"
    classes = read(folder / "o.tif", 1)
    counts = {int(name): count for name, count in facts["class_counts"].items()}
    assert counts == {value: int((classes == value).sum()) for value in range(5)}


def test_threads_may_be_shared_out_by_hand(bundle_folder: Path, scene: Path, folder: Path) -> None:
    shared = folder / "a.tif", folder / "b.tif"
    for target, options in zip(shared, (["--workers", "3", "--threads", "1"], []), strict=True):
        assert call(bundle_folder, [scene], target, *options).exit_code == 0
    with rasterio.open(shared[0]) as file:
        assert file.tags()["GEOSTUDIO_THREADS"] == "3x1"
    np.testing.assert_array_equal(read(shared[0]), read(shared[1]))


_LIMITED = """
import resource, signal, sys
from geostudio_dagster.cli import app
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
app()
"""


@pytest.mark.parametrize("limit", [1 << 12, 300_000])
def test_where_the_disk_is_full_nothing_is_left(
    bundle_folder: Path, scene: Path, folder: Path, limit: int
) -> None:
    command = [sys.executable, "-c", _LIMITED, str(limit), "predict", "--model", str(bundle_folder)]
    command += ["--input", str(scene), "--output", str(folder / "o.tif")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "nothing was written" in done.stderr
    assert not list(folder.iterdir())


def test_the_summary_names_pixels_and_patches(
    bundle_folder: Path, scene: Path, folder: Path
) -> None:
    result = call(
        bundle_folder, [scene], folder / "o.tif", "--patch", "128", "--precision", "exact"
    )
    assert result.exit_code == 0, result.output
    assert "0.36 Mpx" in result.stdout
    assert f"36 patches in float32 on {choose_device(PredictOptions())}" in result.stdout


def test_what_runs_onnx_models_is_a_setting_and_an_option(folder: Path, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", Convolutions(3, 1), runtime="onnx")
    scene = write_raster(tmp_path / "s.tif", np.ones((3, 70, 90), np.float32))
    for option, setting, expected in (
        ([], "auto", "openvino"),
        ([], "onnxruntime", "onnxruntime"),
        (["--onnx-engine", "openvino"], "onnxruntime", "openvino"),
        (["--onnx-engine", "onnxruntime"], "auto", "onnxruntime"),
    ):
        target = folder / "o.tif"
        result = call(
            bundle.folder, [scene], target, "--json", *option, GEOSTUDIO_ONNX_ENGINE=setting
        )
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["engine"] == expected
        with rasterio.open(target) as file:
            assert file.tags()["GEOSTUDIO_ENGINE"] == expected


def test_a_quicklook_shows_the_output(bundle_folder: Path, folder: Path, tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "in", "scene.tif", size=64)
    for options, target in (([], "o.tif"), (["--probabilities"], "p.tif")):
        look = folder / target.replace(".tif", ".png")
        result = call(
            bundle_folder, [scene], folder / target, "--json", "--quicklook", str(look), *options
        )
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["quicklook"] == str(look)
    assert sorted(item.name for item in folder.iterdir()) == ["o.png", "o.tif", "p.png", "p.tif"]
    with rasterio.open(folder / "o.tif") as file:
        classes, table = file.read(1), file.colormap(1)
    with Image.open(folder / "o.png") as picture:
        assert picture.size == (64, 64)
        shown = np.asarray(picture)
    for value in np.unique(classes[classes != 255]):
        assert (shown[classes == value] == table[value]).all()
    assert (shown[classes == 255] == 0).all()
    # What is likeliest is what the class map has; where it is so by less than half a per cent,
    # rounding hides it.
    with Image.open(folder / "p.png") as picture:
        likeliest = np.asarray(picture)
    first, second = np.sort(read(folder / "p.tif"), axis=0)[:-3:-1]
    clear = (first > second) | (classes == 255)
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(likeliest[clear], shown[clear])


def test_a_scene_of_one_pixel_has_a_quicklook(folder: Path, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", Convolutions(3, 1))
    scene = write_raster(tmp_path / "s.tif", np.ones((3, 1, 1), np.float32), block=16)
    look = folder / "o.PNG"
    result = call(bundle.folder, [scene], folder / "o.tif", "--quicklook", str(look))
    assert result.exit_code == 0, result.output
    with Image.open(look) as picture:
        assert (picture.format, picture.size) == ("PNG", (1, 1))


def test_quicklooks_that_cannot_be_written_are_told_before_any_work(
    bundle_folder: Path, scene: Path, folder: Path
) -> None:
    for look, said in (
        ("look.jpg", "look.jpg is no PNG; name a .png file."),
        ("ftp://host/look.png", "can't be written; give a path or s3://bucket/key."),
        ("s3://bucket", "is no PNG"),
        (folder / "no" / "look.png", "quicklook: "),
        (folder / "o.png", "o.png is the output; name another file."),
    ):
        result = call(bundle_folder, [scene], folder / "o.png", "--quicklook", str(look))
        assert result.exit_code == 2
        assert said in " ".join(result.stderr.split())
    assert list(folder.iterdir()) == []


def test_band_files_are_one_scene(
    bundle_folder: Path, scene: Path, folder: Path, tmp_path: Path
) -> None:
    files = []
    with rasterio.open(scene) as whole:
        for number, name in enumerate(whole.descriptions, start=1):
            path = tmp_path / f"{name}.tif"
            with rasterio.open(path, "w", **whole.profile | {"count": 1}) as band:
                band.write(whole.read(number), 1)
                band.set_band_description(1, name)
            files.append(path)
    result = call(bundle_folder, files[::-1], folder / "o.tif")
    assert result.exit_code == 0, result.output
    engine(bundle_folder, scene, tmp_path / "p.tif")
    assert np.array_equal(read(folder / "o.tif"), read(tmp_path / "p.tif"))


class Change(nn.Module):
    """The second date less the first: (N, 1, 2, H, W) to (N, 1, H, W)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, 1] - x[:, :, 0]


def test_dates_go_in_the_order_of_the_inputs(folder: Path, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", Change(), bands=1, dates=2)
    old = write_raster(tmp_path / "old.tif", np.full((1, 70, 90), 100, np.int16))
    new = write_raster(tmp_path / "new.tif", np.full((1, 70, 90), 130, np.int16))
    for inputs, change in (([old, new], 30), ([new, "--input", old], -30)):
        result = call(bundle.folder, inputs, folder / "o.tif")
        assert result.exit_code == 0, result.output
        assert np.abs(read(folder / "o.tif", 1) - change).max() < 1e-5


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("missing.tif", "missing.tif is not a file here; check the path."),
        ("ftp://host/scene.tif", "give a path, an http(s) URL or s3://bucket/key."),
        ("/vsizip//tmp/a.zip/a.tif", "give a path, an http(s) URL or s3://bucket/key."),
        ("s3://bucket", "s3://bucket names no object; write s3://bucket/key.tif."),
        ("http://127.0.0.1/scene.tif", "not a public address"),
        ("http://user:secret@host/scene.tif", "carries a user name or password"),
    ],
)
def test_addresses_that_cannot_be_read_are_bad_input(
    bundle_folder: Path, folder: Path, given: str, sentence: str
) -> None:
    result = call(bundle_folder, [given], folder / "o.tif")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
    assert "secret" not in result.stderr
    assert list(folder.iterdir()) == []


def test_what_the_scene_lacks_is_bad_input(
    bundle_folder: Path, scene: Path, folder: Path, tmp_path: Path
) -> None:
    output = folder / "o.tif"
    few = write_raster(tmp_path / "few.tif", np.ones((2, 50, 50), np.uint16))
    cut = tmp_path / "cut.tif"
    cut.write_bytes(scene.read_bytes()[: scene.stat().st_size // 2])
    for inputs, model, options, said in (
        ([few], bundle_folder, (), "few.tif"),
        ([cut], bundle_folder, (), "cut.tif can't be opened as a GeoTIFF"),
        ([scene], tmp_path, (), "has no bundle.yaml"),
        ([scene], bundle_folder, ("--overlap", "300"), "can't overlap by 300"),
        ([scene], bundle_folder, ("--device", "abacus"), "There is no device abacus"),
        ([scene], bundle_folder, ("--device", "meta"), "There is no device meta"),
        ([scene], bundle_folder, ("--batch-size", str(10**30)), "Invalid value"),
        ([scene], bundle_folder, ("--patch", "20000"), "Invalid value"),
    ):
        result = call(model, inputs, output, *options)
        assert (result.exit_code, result.stdout) == (2, ""), result.output
        assert said in result.stderr
        assert list(folder.iterdir()) == []


def test_outputs_that_would_do_harm_are_refused(
    bundle_folder: Path, scene: Path, folder: Path
) -> None:
    before = scene.read_bytes()
    for output, said in (
        (scene, "is an input"),
        (folder, "is a folder"),
        (folder / "no" / "o.tif", "is not a folder"),
        (bundle_folder / "model.pt", "is a file of the model"),
        (bundle_folder / "no" / ".." / "bundle.yaml", "is a file of the model"),
    ):
        result = call(bundle_folder, [scene], output)
        assert result.exit_code == 2
        assert said in result.stderr
    assert scene.read_bytes() == before
    assert list(folder.iterdir()) == []


def test_no_file_is_written_over_another_that_is_named(
    bundle_folder: Path, scene: Path, folder: Path
) -> None:
    shutil.copy(scene, folder / "in.html")
    (folder / "link.svg").symlink_to(folder / "o.svg")
    before = sorted(it.name for it in folder.iterdir())
    look = str(folder / ".." / folder.name / "o.png")
    for output, options, said in (
        ("o.tif", ("--profile", str(folder / "in.html")), "in.html is an input"),
        ("o.svg", ("--profile", str(folder / "o.svg")), "o.svg is the output"),
        ("o.svg", ("--profile", str(folder / "link.svg")), "link.svg is the output"),
        ("o.png", ("--quicklook", look), "o.png is the output"),
    ):
        result = call(bundle_folder, [folder / "in.html"], folder / output, *options)
        assert result.exit_code == 2, result.output
        assert said in result.stderr
    assert sorted(it.name for it in folder.iterdir()) == before
    assert (folder / "in.html").read_bytes() == scene.read_bytes()


def test_a_pipe_or_device_is_no_place_for_an_output(
    bundle_folder: Path, scene: Path, folder: Path
) -> None:
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    result = call(bundle_folder, [scene], pipe)
    assert result.exit_code == 2
    assert "pipe is no regular file; name another file." in result.stderr
    assert pipe.is_fifo()


def test_names_that_are_no_text_are_bad_input(
    bundle_folder: Path, scene: Path, folder: Path
) -> None:
    odd = Path(os.fsdecode(b"\xff.tif"))
    for inputs, output in (([odd], folder / "o.tif"), ([scene], folder / odd)):
        result = call(bundle_folder, inputs, output)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "is not UTF-8; rename it." in result.stderr


def test_a_report_that_cannot_be_printed_costs_no_output(
    bundle_folder: Path, scene: Path, folder: Path
) -> None:
    output = folder / "o.tif"
    command = [sys.executable, "-m", "geostudio_dagster", "predict", "--model", str(bundle_folder)]
    command += ["--input", str(scene), "--output", str(output), "--json"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "is complete, but its report can't be printed" in " ".join(done.stderr.split())
    assert output.is_file()


def test_what_a_killed_prediction_left_goes_with_the_next_one(
    bundle_folder: Path, scene: Path, folder: Path
) -> None:
    dead, alive = folder / ".o.tif.dead", folder / ".o.tif.live"
    for left in (dead, alive):
        left.mkdir()
        (left / "o.scratch.tif").write_bytes(b"rows")
    lock = os.open(alive, os.O_RDONLY)  # as a process has it that works there
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert call(bundle_folder, [scene], folder / "o.tif").exit_code == 0
    finally:
        os.close(lock)
    assert sorted(it.name for it in folder.iterdir()) == [".o.tif.live", "o.tif"]


def test_ambiguous_inputs_are_a_usage_error(bundle_folder: Path, scene: Path, folder: Path) -> None:
    result = call(bundle_folder, [scene, scene, "--input", scene], folder / "o.tif")
    assert result.exit_code == 2
    assert "repeat --input for each scene" in " ".join(result.stderr.split())


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_prediction_leaves_nothing(
    bundle_folder: Path, folder: Path, tmp_path: Path, kind: signal.Signals
) -> None:
    wide = tmp_path / "wide.tif"
    with rasterio.open(write_scene(tmp_path, "small.tif", size=64)) as small:
        names = small.descriptions
        profile = small.profile | {"width": 20_000, "height": 20_000, "nodata": None}
    with rasterio.open(wide, "w", **profile, sparse_ok=True) as file:
        file.descriptions = names
    screen, terminal = pty.openpty()
    command = [sys.executable, "-m", "geostudio_dagster", "predict", "--model", str(bundle_folder)]
    command += ["--input", str(wide), "--output", str(folder / "o.tif")]
    process = subprocess.Popen(command, stderr=terminal, stdout=subprocess.PIPE)
    os.close(terminal)
    shown = b""
    while b"%" not in shown:  # the first rows are done
        shown += os.read(screen, 4096)
    assert list(folder.glob(".o.tif.*/*.tif"))
    process.send_signal(kind)
    while part := _read(screen):
        shown += part
    assert process.wait(240) == 130
    os.close(screen)
    assert b"Mpx/s" in shown
    assert b"Stopped; nothing was written." in shown
    assert list(folder.iterdir()) == []


def _read(screen: int) -> bytes:
    try:
        return os.read(screen, 4096)
    except OSError:  # the other side is closed
        return b""
