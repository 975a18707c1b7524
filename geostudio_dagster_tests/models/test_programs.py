"""Networks of TerraTorch kept as programs: the same bytes, without TerraTorch."""

from __future__ import annotations

import json
import logging
import os
import resource
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from geostudio_dagster.errors import TaskError
from geostudio_dagster.models.bundle import Bundle, load_bundle
from geostudio_dagster.models.cache import MODELS
from geostudio_dagster.models.contract import InputSpec
from geostudio_dagster.models.conversion import graph_of, keep_program
from geostudio_dagster.models.modules import ProgramRuntime, TorchRuntime
from geostudio_dagster.models.programs import Program, ProgramFile, remove_unused_programs
from geostudio_dagster.models.runtime import load_runtime
from geostudio_dagster.prediction import PredictOptions, predict
from geostudio_dagster.prediction.options import Precision
from geostudio_dagster_tests.models.tunes import (
    BANDS,
    OPTICAL,
    RADAR,
    SIZE,
    LastFeatures,
    make_terramind,
    make_tune,
    make_unet,
    make_with_decoder,
)
from geostudio_dagster_tests.prediction.builders import write_raster

# What a process must not import that loads a program.
HEAVY = ("terratorch", "lightning", "timm", "segmentation_models_pytorch", "torch._dynamo", "sympy")
LATER = f"""
import json, sys
from pathlib import Path
from geostudio_dagster.models.bundle import load_bundle
from geostudio_dagster.prediction import PredictOptions, predict
bundle, programs, out, *scenes = map(Path, sys.argv[1:])
source = scenes if len(scenes) > 1 else scenes[0]
for precision in ("exact", "auto"):
    options = PredictOptions(precision=precision, programs=programs)
    predict(source, load_bundle(bundle), out / f"{{precision}}.tif", scratch=out, options=options)
print(json.dumps([name for name in {HEAVY} if name in sys.modules]))
"""


@pytest.fixture(scope="module")
def tune(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_tune(tmp_path_factory.mktemp("tunes") / "segmentation", "segmentation")[0]


def scene(tmp_path: Path, bands: tuple[str, ...] = BANDS, seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(1, 4000, (len(bands), 150, 170))
    return write_raster(tmp_path / f"s{seed}.tif", pixels.astype(np.uint16), names=bands)


def predicted(
    bundle: Bundle,
    source: Path | list[Path],
    target: Path,
    precision: Precision = "exact",
    programs: Path | None = None,
) -> bytes:
    MODELS.clear()
    target.parent.mkdir(exist_ok=True)
    options = PredictOptions(precision=precision, programs=programs)
    predict(source, bundle, target, scratch=target.parent, options=options)
    return target.read_bytes()


@pytest.mark.parametrize("kind", ["segmentation", "regression", "dates", "modalities", "unet"])
def test_another_process_gives_the_same_bytes_without_terratorch(tmp_path: Path, kind: str) -> None:
    sources = [scene(tmp_path)]
    if kind == "modalities":
        bundle, _ = make_terramind(tmp_path / "tune")
        sources = [scene(tmp_path, OPTICAL), scene(tmp_path, RADAR, seed=1)]
    elif kind == "unet":
        bundle, _ = make_unet(tmp_path / "tune")
    elif kind == "dates":
        bundle, _ = make_tune(tmp_path / "tune", "segmentation", dates=2)
        sources = [scene(tmp_path), scene(tmp_path, seed=1)]
    else:
        bundle, _ = make_tune(tmp_path / "tune", kind)
    programs, later = tmp_path / "programs", tmp_path / "later"
    keep_program(bundle, programs)
    later.mkdir()
    command = [sys.executable, "-c", LATER, bundle.folder, programs, later, *sources]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == []
    source = sources if len(sources) > 1 else sources[0]
    for precision in ("exact", "auto"):
        name = f"{precision}.tif"
        before = predicted(bundle, source, tmp_path / name, cast(Precision, precision))
        assert (later / name).read_bytes() == before


def test_what_was_folded_is_told_by_the_program_too(tmp_path: Path) -> None:
    bundle, task = make_unet(tmp_path / "tune")
    keep_program(bundle, tmp_path / "programs")
    model = load_runtime(bundle, programs=tmp_path / "programs")
    assert isinstance(model.runtime, ProgramRuntime)
    assert model.folded == load_runtime(bundle).folded > 0
    pixels = torch.randn((2, 4, SIZE, SIZE))
    torch.set_float32_matmul_precision("highest")
    with torch.inference_mode():
        torch.testing.assert_close(model(pixels), task(pixels).output, atol=1e-4, rtol=0)


def test_a_load_makes_no_program_and_needs_none(tmp_path: Path, tune: Bundle) -> None:
    model = load_runtime(tune, programs=tmp_path / "programs")
    assert isinstance(model.runtime, TorchRuntime)
    assert not (tmp_path / "programs").exists()


@pytest.mark.parametrize("damage", ["cut off", "empty", "foreign", "of another", "senseless"])
def test_what_is_no_program_is_made_anew(tmp_path: Path, tune: Bundle, damage: str) -> None:
    programs = tmp_path / "programs"
    keep_program(tune, programs)
    [path] = programs.iterdir()
    whole = path.read_bytes()
    content = torch.load(path, weights_only=True)
    if damage in {"of another", "senseless"}:
        changes = {"of another": {"key": "another"}, "senseless": {"calls": '[{"output": 1}]'}}
        torch.save(content | changes[damage], path)
    else:
        path.write_bytes(
            {"cut off": whole[: len(whole) // 2], "empty": b"", "foreign": b"no program"}[damage]
        )
    source = scene(tmp_path)
    expected = predicted(tune, source, tmp_path / "a.tif")
    assert predicted(tune, source, tmp_path / "b.tif", programs=programs) == expected
    assert list(programs.iterdir()) == []
    keep_program(tune, programs)
    assert isinstance(load_runtime(tune, programs=programs).runtime, ProgramRuntime)


def test_a_program_that_cannot_be_opened_now_stays(tmp_path: Path, tune: Bundle) -> None:
    keep_program(tune, tmp_path)
    place = ProgramFile.of(tune, tmp_path)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, most[1]))
    try:
        assert place.read() is None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, most)
    assert place.read() is not None


def test_a_program_that_memory_does_not_do_for_stays(tmp_path: Path, tune: Bundle) -> None:
    keep_program(tune, tmp_path)
    [path] = tmp_path.iterdir()
    endless = {"call": "aten.new_zeros.default", "args": [{"node": 0}, [10**14]], "kwargs": {}}
    calls = json.dumps([{"input": 0}, endless, {"output": {"node": 1}}])
    torch.save(torch.load(path, weights_only=True) | {"calls": calls}, path)
    with pytest.raises(RuntimeError, match="allocate memory"):
        load_runtime(tune, programs=tmp_path)
    assert path.exists()


def test_what_is_run_by_a_program_may_be_removed_and_its_precision_changed(
    tmp_path: Path, tune: Bundle
) -> None:
    keep_program(tune, tmp_path)
    kept, built_anew = load_runtime(tune, programs=tmp_path), load_runtime(tune)
    assert isinstance(kept.runtime, ProgramRuntime)
    ProgramFile.of(tune, tmp_path).remove()
    torch.set_float32_matmul_precision("highest")
    pixels = torch.randn((2, 4, SIZE, SIZE), generator=torch.Generator().manual_seed(0))

    def output(model: Any, low: bool) -> Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=low):
            return cast(Tensor, model(pixels))

    expected = {low: output(built_anew, low) for low in (False, True)}
    assert not torch.equal(expected[False], expected[True])
    turns = [low for _ in range(6) for low in (False, True)]
    for workers in (1, 3):
        with ThreadPoolExecutor(workers) as pool:
            for low, found in zip(turns, pool.map(lambda x: output(kept, x), turns), strict=True):
                assert torch.equal(found, expected[low])


CHANGES = """
import sys, threading
from pathlib import Path
import torch
from geostudio_dagster.models.modules import ProgramRuntime
from geostudio_dagster.models.programs import ProgramFile
from geostudio_dagster.prediction.report import peak_rss

path = Path(sys.argv[1])
runtime = ProgramRuntime(ProgramFile(path, "key").read().graph, "cpu", path.open("rb"))

def run(low):
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=low):
        runtime.forward(torch.zeros((1, 3, 8, 8)))

run(False)
before = peak_rss()
for low in (True, False, True):
    thread = threading.Thread(target=run, args=(low,))
    thread.start()
    thread.join()
print(peak_rss() - before)
"""


def test_another_precision_takes_no_more_memory(tmp_path: Path) -> None:
    layers = [nn.Conv2d(1024, 1024, 3, padding=1) for _ in range(6)]  # 226 MB, 113 in bfloat16
    network = nn.Sequential(nn.Conv2d(3, 1024, 1), *layers, nn.Conv2d(1024, 2, 1)).eval()
    graph = graph_of(network, network, InputSpec(1, 8, (("", 3),)), "cpu")
    path = tmp_path / "wide.pt"
    ProgramFile(path, "key").keep(Program(graph))
    command = [sys.executable, "-c", CHANGES, path]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(done.stdout) < 80e6


def test_what_is_folded_is_so_before_it_goes_to_a_device(tmp_path: Path) -> None:
    bundle, _ = make_unet(tmp_path / "tune")
    # Nothing can be compared there, as little as folding on a GPU would give the same bits.
    assert load_runtime(bundle, "meta").folded == load_runtime(bundle).folded > 0


@pytest.mark.parametrize("package", ["timm", "segmentation_models_pytorch", "torchgeo"])
def test_another_version_of_what_wrote_the_network_is_another_program(
    tmp_path: Path, tune: Bundle, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    before = ProgramFile.of(tune, tmp_path)
    facts = tmp_path / f"{package}-99.dist-info"
    facts.mkdir()
    name = package.replace("_", "-")
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 99\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert ProgramFile.of(tune, tmp_path).path != before.path


def test_several_that_make_it_at_once_leave_one(tmp_path: Path, tune: Bundle) -> None:
    programs = tmp_path / "programs"
    models = [load_runtime(tune) for _ in range(3)]
    threads = [threading.Thread(target=keep_program, args=(tune, programs, m)) for m in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(programs.iterdir())) == 1
    assert isinstance(load_runtime(tune, programs=programs).runtime, ProgramRuntime)


def copy_of(bundle: Bundle, folder: Path) -> Path:
    folder.mkdir()
    for path in bundle.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def changed_weights(bundle: Bundle) -> None:
    content = torch.load(bundle.weights_path, weights_only=False)
    weights = content["state_dict"]
    weights["model.head.head.2.bias"] += torch.tensor([9.0, 0.0, 0.0])
    torch.save({"state_dict": weights}, bundle.weights_path)


def test_changed_weights_are_another_program(tmp_path: Path, tune: Bundle) -> None:
    programs, source = tmp_path / "programs", scene(tmp_path)
    bundle = load_bundle(copy_of(tune, tmp_path / "copy"))
    keep_program(bundle, programs)
    before = predicted(bundle, source, tmp_path / "o.tif", programs=programs)
    changed_weights(bundle)
    bundle = load_bundle(bundle.folder)
    assert not ProgramFile.of(bundle, programs).exists
    keep_program(bundle, programs)
    after = predicted(bundle, source, tmp_path / "o.tif", programs=programs)
    assert after != before
    assert after == predicted(bundle, source, tmp_path / "o.tif")


def test_a_bundle_that_changed_since_it_was_read_is_not_kept(tmp_path: Path, tune: Bundle) -> None:
    bundle = load_bundle(copy_of(tune, tmp_path / "copy"))
    changed_weights(bundle)
    keep_program(bundle, tmp_path / "programs")
    assert not (tmp_path / "programs").exists()


def test_another_patch_size_is_another_program(tmp_path: Path, tune: Bundle) -> None:
    programs, source = tmp_path / "programs", scene(tmp_path)
    keep_program(tune, programs)
    made = []
    for folder in (programs, None):
        MODELS.clear()
        target = tmp_path / "o.tif"
        options = PredictOptions(patch=2 * SIZE, programs=folder)
        report = predict(source, tune, target, scratch=tmp_path, options=options)
        assert report.patch == 2 * SIZE
        made.append(target.read_bytes())
    assert made[0] == made[1]


class Undecided(LastFeatures):
    """A decoder whose way depends on the pixels, which no graph can say."""

    def forward(self, features: list[Tensor]) -> Tensor:
        last = features[-1]
        return last if last.sum() > 0 else -last


def test_what_cannot_become_a_program_is_built_each_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = make_with_decoder(tmp_path / "tune", Undecided)
    programs, source = tmp_path / "programs", scene(tmp_path)
    with caplog.at_level(logging.WARNING, "geostudio_dagster"):
        keep_program(bundle, programs)
        keep_program(bundle, programs)  # known by now
    [record] = [item for item in caplog.records if item.name.startswith("geostudio_dagster")]
    assert record.message.startswith("model tune can't be kept as a program")
    assert len(list(programs.iterdir())) == 1
    expected = predicted(bundle, source, tmp_path / "a.tif")
    assert predicted(bundle, source, tmp_path / "b.tif", programs=programs) == expected


def test_a_folder_that_cannot_be_written_is_told(
    tmp_path: Path, tune: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "programs").write_text("a file, not a folder")
    keep_program(tune, tmp_path / "programs")
    assert "can't be kept in" in caplog.text


def test_weights_that_do_not_fit_are_told_as_the_program_is_made(
    tmp_path: Path, tune: Bundle
) -> None:
    folder = copy_of(tune, tmp_path / "copy")
    torch.save({"state_dict": {"model.x": torch.zeros(1)}}, folder / tune.manifest.weights)
    with pytest.raises(TaskError, match="does not fit the model"):
        keep_program(load_bundle(folder), tmp_path / "programs")
    assert not (tmp_path / "programs").exists()


def test_programs_go_when_unused_or_too_many_the_oldest_first(tmp_path: Path) -> None:
    for number in range(5):
        path = tmp_path / f"{number}.pt"
        path.write_bytes(b"x" * 10)
        os.utime(path, (number, number))
    nothing: frozenset[str] = frozenset()
    assert remove_unused_programs(tmp_path / "none", nothing, 9, 0, 9) == []
    assert remove_unused_programs(tmp_path, {"0.pt"}, 2, 100, 9) == ["1.pt"]
    assert remove_unused_programs(tmp_path, nothing, 1, 100, 9) == ["0.pt"]
    assert remove_unused_programs(tmp_path, {"2.pt"}, 0, 15, 1) == ["2.pt"]
    assert remove_unused_programs(tmp_path, nothing, 0, 15, 9) == ["3.pt"]
    assert {path.name for path in tmp_path.iterdir()} == {"4.pt"}


def test_a_program_that_is_loaded_counts_as_used(tmp_path: Path, tune: Bundle) -> None:
    keep_program(tune, tmp_path)
    [path] = tmp_path.iterdir()
    os.utime(path, (1, 1))
    load_runtime(tune, programs=tmp_path)
    assert remove_unused_programs(tmp_path, (), silent_since=2, most_bytes=10**9, limit=9) == []
