"""The forward pass when memory runs out: halves from then on, in order, all of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from geostudio_dagster.cores import instruction_sets
from geostudio_dagster.models.contract import InputSpec
from geostudio_dagster.models.conversion import graph_of
from geostudio_dagster.models.graph import Graph
from geostudio_dagster.models.modules import ProgramRuntime, TorchRuntime
from geostudio_dagster.models.programs import Program, ProgramFile
from geostudio_dagster.models.runtime import Model
from geostudio_dagster.prediction import PredictOptions
from geostudio_dagster.prediction.batches import Batch
from geostudio_dagster.prediction.calibration import calibrated
from geostudio_dagster.prediction.forward import ForwardPass, ForwardPlan, plan_forward
from geostudio_dagster.prediction.normalising import Normalisation
from geostudio_dagster.prediction.report import StageClock
from geostudio_dagster.raster.scene import Channel

PLAN = ForwardPlan("cpu", bfloat16=False, batch_size=8, workers=1, threads=1)


class Narrow(nn.Module):
    """Twice the pixels; takes a few patches at a time only, as a small GPU would."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.asked: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(len(x))
        if len(x) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 2 * x


def batches(count: int) -> Iterator[Batch]:
    for number in range(count):
        pixels = np.arange(8, dtype=np.float32) + 8 * number
        yield Batch(np.broadcast_to(pixels[:, None, None, None], (8, 1, 4, 4)).copy(), used=8)


def model(network: nn.Module, batch_size: int | None = None) -> Model:
    return Model(TorchRuntime(network, InputSpec(1, 4, (("", 1),)), "cpu", batch_size))


def passing(network: nn.Module, batch_size: int | None = None) -> ForwardPass:
    return ForwardPass(model(network, batch_size), PLAN, StageClock("forward"))


def test_batches_are_halved_once_and_stay_so() -> None:
    network = Narrow(room=3)
    outputs = [output for _, output in passing(network).over(batches(3))]
    assert network.asked == [8, 4, *[2] * 12]
    together = torch.cat([output for output in outputs if output is not None])
    assert together[:, 0, 0, 0].tolist() == [2.0 * n for n in range(24)]


def test_an_output_that_is_the_input_lasts() -> None:
    parts = list(batches(3))
    normalise = Normalisation([Channel(0, 1, None, centre=0.0, gain=1.0)], fill=0.0)
    clock = StageClock("forward", "normalise")
    passing = ForwardPass(model(nn.Identity()), PLAN, clock, normalise=normalise)
    outputs = [output for _, output in passing.over(parts) if output is not None]
    assert torch.cat(outputs)[:, 0, 0, 0].tolist() == list(range(24))


def test_halves_have_their_own_gaps() -> None:
    pixels = np.arange(8, dtype=np.uint16)[:, None, None, None] * np.ones((1, 4, 4), np.uint16)
    valid = np.ones((8, 4, 4), np.bool_)
    valid[5, 0, 0] = False
    batch = Batch(pixels, valid, used=8, gaps=True)
    normalise = Normalisation([Channel(0, 1, None, centre=1.0, gain=3.0)], fill=-7.0)
    network, clock = Narrow(room=3), StageClock("forward", "normalise")
    passing = ForwardPass(model(network), PLAN, clock, normalise=normalise)
    [(_, output)] = passing.over([batch])
    assert network.asked == [8, 4, 2, 2, 2, 2]
    assert output is not None
    assert output[:, 0, 1, 1].tolist() == [6.0 * (n - 1) for n in range(8)]
    assert output[:, 0, 0, 0].tolist() == [6.0 * (n - 1) if n != 5 else -14.0 for n in range(8)]
    assert clock.seconds["normalise"] > 0


@pytest.mark.parametrize(("room", "only"), [(0, None), (4, 8)])
def test_what_never_fits_is_an_error(room: int, only: int | None) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        list(passing(Narrow(room), only).over(batches(1)))


def test_a_batch_that_only_fits_by_halves_is_not_chosen(tmp_path: Path) -> None:
    rule = ForwardPlan("cpu", bfloat16=False, batch_size=4, workers=1, threads=1)
    options = PredictOptions(workers=1, threads=1)
    network = Narrow(room=4)
    plan = calibrated(
        rule,
        options,
        model(network),
        folder=tmp_path,
        digest="d",
        shape=(1, 4, 4),
        alone=nullcontext(),
    )
    assert plan.batch_size <= 4
    assert max(network.asked) == 8
    (kept,) = tmp_path.iterdir()
    measured = {item["batch_size"]: item for item in json.loads(kept.read_text())["measured"]}
    assert measured[8]["ms_per_patch"] is None
    assert measured[4]["ms_per_patch"] > 0


def test_each_arithmetic_is_measured_for_itself(tmp_path: Path) -> None:
    options = PredictOptions(workers=1, threads=1, batch_size=8)
    for number, bfloat16 in enumerate((False, True), start=1):
        calibrated(
            dataclasses.replace(PLAN, bfloat16=bfloat16),
            options,
            model(Narrow(room=8)),
            folder=tmp_path,
            digest="d",
            shape=(1, 4, 4),
            alone=nullcontext(),
        )
        assert len(list(tmp_path.iterdir())) == number


def test_float32_is_float32_whatever_was_set_before() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")  # as importing TerraTorch does
        passing(Narrow(room=8))
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)


class Recording(ProgramRuntime):
    """Knows how many patches it was asked for at a time."""

    def __init__(self, graph: Graph, folder: Path) -> None:
        place = ProgramFile(folder / "kept.pt", "key")
        place.keep(Program(graph))
        super().__init__(graph, "cpu", place.path.open("rb"))
        self.asked: list[int] = []

    def forward(self, pixels: Tensor) -> Tensor:
        self.asked.append(len(pixels))
        return super().forward(pixels)


@pytest.mark.parametrize("seen_on", [instruction_sets(), "another processor"])
def test_places_without_a_patch_are_computed_only_where_numbers_may_depend_on_them(
    tmp_path: Path, seen_on: str
) -> None:
    network, spec = nn.ReLU(), InputSpec(1, 4, (("", 1),))
    graph = dataclasses.replace(graph_of(network, network, spec, "cpu"), seen_on=seen_on)
    runtime = Recording(graph, tmp_path)
    parts = list(batches(2))
    parts[1].used = 3
    parts[1].pixels[3:] = 0
    computed = ForwardPass(Model(runtime), PLAN, StageClock("forward")).over(parts)
    outputs = [output[: batch.used] for batch, output in computed if output is not None]
    assert torch.cat(outputs)[:, 0, 0, 0].tolist() == list(range(11))
    assert runtime.asked == [8, 3 if seen_on == instruction_sets() else 8]


def test_a_gpu_gets_no_larger_batches_than_the_scene_has_patches() -> None:
    runtime = TorchRuntime(nn.ReLU(), InputSpec(1, 4, (("", 1),)), "cuda:0")
    exact = PredictOptions(precision="exact")
    sizes = [plan_forward(exact, Model(runtime), most).batch_size for most in (1, 25, 1000)]
    assert sizes == [1, 25, 32]
    only = dataclasses.replace(runtime, batch_size=8)
    assert plan_forward(exact, Model(only), 1).batch_size == 8


def test_a_moment_in_which_two_workers_compute_is_busy_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moments = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: moments[-1])
    clock = StageClock("forward")
    one, other = clock.computing("forward"), clock.computing("forward")
    moments.append(1.0)
    one.__enter__()
    moments.append(2.0)
    other.__enter__()
    moments.append(4.0)
    one.__exit__(None, None, None)
    moments.append(7.0)
    other.__exit__(None, None, None)
    moments.append(9.0)
    with clock.computing("forward"):
        moments.append(9.5)
    assert clock.busy == 6.5
