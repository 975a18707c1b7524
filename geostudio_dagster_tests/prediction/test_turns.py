"""Several predictions of one process: in order, within one device and one memory, equal bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from geostudio_dagster.errors import Cancelled
from geostudio_dagster.models import cache
from geostudio_dagster.models.bundle import Bundle
from geostudio_dagster.models.contract import InputSpec
from geostudio_dagster.models.modules import TorchRuntime
from geostudio_dagster.models.runtime import Model
from geostudio_dagster.prediction import PredictOptions, predict
from geostudio_dagster.prediction.report import StageClock
from geostudio_dagster.prediction.turns import Turns
from geostudio_dagster_tests.prediction.builders import Convolutions, write_bundle, write_raster

WHOLE, HALF = Fraction(1), Fraction(1, 2)
PATIENCE_S = 20


class Waiter:
    """Waits for its turn in a thread of its own; says that it waits, and who came before."""

    def __init__(self, turns: Turns, part: Fraction, order: int, had: list[int]) -> None:
        self.waits, self.gives_up = threading.Event(), False
        self.refused = False
        self._thread = threading.Thread(target=self._run, args=(turns, part, order, had))
        self._thread.start()

    def _run(self, turns: Turns, part: Fraction, order: int, had: list[int]) -> None:
        try:
            with turns.taken(part, order, self._asked):
                had.append(order)
        except Cancelled:
            self.refused = True

    def _asked(self) -> bool:
        self.waits.set()
        return self.gives_up

    def ends(self) -> None:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


def test_whoever_began_first_is_next_and_a_large_part_is_not_passed_over() -> None:
    turns, had = Turns(), list[int]()
    with turns.taken(HALF, 0, bool):
        waiters = []
        # A half is free, but once the whole is asked for, nobody behind may have it.
        for part, order in ((WHOLE, 4), (HALF, 9), (HALF, 7)):
            waiters.append(Waiter(turns, part, order, had))
            assert waiters[-1].waits.wait(PATIENCE_S)
        assert had == []
    for waiter in waiters:
        waiter.ends()
    assert had[0] == 4 and sorted(had) == [4, 7, 9]


def test_who_gives_up_waiting_keeps_nobody_waiting() -> None:
    turns, had = Turns(), list[int]()
    with turns.taken(HALF, 0, bool):
        large = Waiter(turns, WHOLE, 1, had)
        assert large.waits.wait(PATIENCE_S)
        small = Waiter(turns, HALF, 2, had)
        assert small.waits.wait(PATIENCE_S)
        large.gives_up = True
        large.ends()
        small.ends()
    assert (large.refused, had) == (True, [2])
    with turns.taken(WHOLE, 3, bool):
        pass  # all of it is free again


def test_an_error_in_the_body_frees_the_part() -> None:
    turns = Turns()
    with pytest.raises(ZeroDivisionError), turns.taken(WHOLE, 0, bool):
        _ = 1 / 0
    with turns.taken(WHOLE, 1, bool):
        pass


class Meeting(nn.Module):
    """Twice the pixels; counts how many forward passes are under way at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.under_way = self.most = 0
        self.lock = threading.Lock()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with self.lock:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        output = 2 * x[:, :1]
        with self.lock:
            self.under_way -= 1
        return output


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "bundle", Convolutions(3, 2), classes=2)


def scenes(folder: Path, count: int) -> list[Path]:
    made = []
    for number in range(count):
        pixels = np.random.default_rng(number).normal(size=(3, 150 + 40 * number, 260))
        made.append(write_raster(folder / f"s{number}.tif", pixels.astype(np.float32)))
    return made


def outputs(
    folder: Path, bundle: Bundle, sources: list[Path], options: PredictOptions, at_once: int
) -> list[bytes]:
    folder.mkdir()

    def one(source: Path) -> bytes:
        target = folder / source.name
        predict(source, bundle, target, scratch=folder, options=options)
        return target.read_bytes()

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(one, sources))


@pytest.mark.parametrize("memory", [64 * 1024**2, 200_000])
def test_scenes_at_the_same_time_give_the_bytes_of_one_after_another(
    tmp_path: Path, bundle: Bundle, memory: int
) -> None:
    sources = scenes(tmp_path, 6)
    options = PredictOptions(device="cpu", memory=memory, workers=2, threads=1, batch_size=3)
    alone = outputs(tmp_path / "alone", bundle, sources, options, 1)
    assert outputs(tmp_path / "three", bundle, sources, options, 3) == alone


def test_no_more_forward_passes_go_on_than_one_prediction_would_have(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Meeting()
    model = Model(TorchRuntime(network, InputSpec(1, 32, (("", 3),)), "cpu", None), channels=2)
    monkeypatch.setattr("geostudio_dagster.prediction.engine.loaded", lambda *_, **__: model)
    monkeypatch.setattr(Model, "__call__", lambda self, x: _two(self.runtime.forward(x)))
    options = PredictOptions(device="cpu", workers=2, threads=1, batch_size=1)
    outputs(tmp_path / "out", bundle, scenes(tmp_path, 6), options, 4)
    assert 1 <= network.most <= 2


def _two(output: object) -> torch.Tensor:
    assert isinstance(output, torch.Tensor)
    return torch.cat([output, -output], dim=1)


def test_a_scene_that_is_cancelled_while_it_waits_leaves_nothing_and_the_other_goes_on(
    tmp_path: Path, bundle: Bundle
) -> None:
    one, other = scenes(tmp_path, 2)
    # As little memory as one scene needs: the other has to wait for it.
    options = PredictOptions(device="cpu", memory=1)
    asked, told = threading.Event(), threading.Event()

    def wait_for_the_other() -> bool:
        told.set()
        assert asked.wait(PATIENCE_S)
        return False

    def cancelled() -> bool:
        asked.set()
        return True

    def start(source: Path, stop: Callable[[], bool]) -> object:
        target = tmp_path / f"out-{source.name}"
        try:
            return predict(
                source, bundle, target, scratch=tmp_path, options=options, cancelled=stop
            )
        except Cancelled as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(start, one, wait_for_the_other)
        assert told.wait(PATIENCE_S)
        second = pool.submit(start, other, cancelled)
        assert isinstance(second.result(PATIENCE_S), Cancelled)
        assert not isinstance(first.result(PATIENCE_S), Cancelled)
    assert sorted(path.name for path in tmp_path.glob("out-*")) == [f"out-{one.name}"]


def test_the_model_is_loaded_once(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = cache.ModelCache()
    monkeypatch.setattr(cache, "MODELS", models)
    outputs(tmp_path / "out", bundle, scenes(tmp_path, 4), PredictOptions(device="cpu"), 4)
    assert models.loads == 1


def test_waiting_for_others_is_queued_and_not_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: moments[-1])
    clock = StageClock("forward")
    with clock.queuing():
        moments.append(3.0)
    moments.append(4.0)
    with clock.computing("forward"):
        moments.append(5.0)
        with clock.queuing():  # another worker, while this one computes
            moments.append(7.0)
        moments.append(8.0)
    assert (clock.queued, clock.busy) == (3.0, 4.0)
