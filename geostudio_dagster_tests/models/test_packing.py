"""Packed weights give the same network: what it computes, from any batch, and what it weighs."""

from __future__ import annotations

import dataclasses
import gc
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from geostudio_dagster.cores import computing_with, instruction_sets
from geostudio_dagster.models.contract import InputSpec
from geostudio_dagster.models.conversion import graph_of
from geostudio_dagster.models.graph import Graph, built, lower
from geostudio_dagster.models.modules import ProgramRuntime
from geostudio_dagster.models.packing import Batches, convolved_shapes, pack_weights
from geostudio_dagster.models.programs import Program, ProgramFile, graph_in

BANDS, SIDE = 4, 24
HAS_BFLOAT16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
# Types of weights that a processor can have packed; without bfloat16, it isn't used either.
PACKABLE = (torch.float32, torch.bfloat16) if HAS_BFLOAT16 else (torch.float32,)
pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="nothing is packed without oneDNN"
)


class Residual(nn.Module):
    """One result used twice, and ReLUs in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(BANDS, BANDS, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        kept = self.first(x)
        return (self.second(nn.functional.relu(kept)) + kept).relu_()


class Shared(nn.Module):
    """The same weights twice, with different strides."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(BANDS, BANDS, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        once = nn.functional.conv2d(x, self.weight, padding=1)
        return nn.functional.conv2d(once, self.weight, stride=2)


def traced(network: nn.Module) -> Graph:
    spec = InputSpec(1, SIDE, (("", BANDS),))
    network.eval()

    def forward(x: Tensor) -> Tensor:
        output: Tensor = network(x.contiguous(memory_format=torch.channels_last))
        return output

    return graph_of(forward, network, spec, "cpu")


def plain_and_packed(graph: Graph, low: bool) -> tuple[fx.GraphModule, fx.GraphModule, int]:
    plain, packed = built(graph, "cpu"), built(graph, "cpu")
    if low:
        lower(plain, torch.bfloat16)
        lower(packed, torch.bfloat16)
    shapes = convolved_shapes(built(graph, "cpu"), noise(1))
    return plain, packed, pack_weights(packed, shapes, Batches(2, 1)).count


def noise(count: int, bands: int = BANDS) -> Tensor:
    return torch.randn((count, bands, SIDE, SIDE), generator=torch.Generator().manual_seed(count))


def assert_same(graph: Graph, low: bool, *, packed_ones: int, counts: tuple[int, ...]) -> None:
    plain, packed, found = plain_and_packed(graph, low)
    assert found == (0 if low and not HAS_BFLOAT16 else packed_ones)
    for count in counts:
        pixels = noise(count)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=low):
            expected, output = plain(pixels), packed(pixels)
        assert output.dtype == expected.dtype
        scale = float(expected.abs().max())
        torch.testing.assert_close(output, expected, rtol=0, atol=(2e-2 if low else 1e-5) * scale)


NETWORKS: list[tuple[Callable[[], nn.Module], int]] = [
    (Residual, 2),
    (Shared, 0),
    (lambda: nn.Conv2d(BANDS, 6, 3, stride=2, padding=1, dilation=2, bias=False), 1),
    (lambda: nn.Conv2d(BANDS, 8, 3, groups=BANDS), 1),
    (lambda: nn.Conv2d(BANDS, 8, (1, 5), padding=(0, 2)), 1),
    (lambda: nn.Sequential(nn.Conv2d(BANDS, 8, 3), nn.ReLU(inplace=True)), 1),
    (lambda: nn.Conv2d(BANDS, 8, 3, padding="same"), 0),
    (lambda: nn.ConvTranspose2d(BANDS, 8, 2, stride=2), 0),
]


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize(("network", "count"), NETWORKS)
def test_packed_weights_give_the_same(
    network: Callable[[], nn.Module], count: int, low: bool
) -> None:
    torch.manual_seed(0)
    assert_same(traced(network()), low, packed_ones=count, counts=(1, 2, 7))


@settings(deadline=None, max_examples=30)
@given(
    kernel=st.integers(2, 5),
    stride=st.integers(1, 3),
    padding=st.integers(0, 3),
    dilation=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
    wide=st.sampled_from([4, 16, 20]),
    low=st.booleans(),
)
def test_whatever_the_convolution(
    *, kernel: int, stride: int, padding: int, dilation: int, groups: int, wide: int, low: bool
) -> None:
    torch.manual_seed(0)
    calls = (
        '[{"input": 0}, {"tensor": "weight"}, {"tensor": "bias"}, {"call": "aten.conv2d.default", '
        f'"args": [{{"node": 0}}, {{"node": 1}}, {{"node": 2}}, [{stride}, {stride}], '
        f'[{padding}, {padding}], [{dilation}, {dilation}], {groups}], "kwargs": {{}}}}, '
        '{"output": {"node": 3}}]'
    )
    weight = torch.randn(wide, BANDS // groups, kernel, kernel)
    graph = Graph(calls, {"weight": weight, "bias": torch.randn(wide)})
    assert_same(graph, low, packed_ones=1, counts=(1, 3))


@pytest.mark.parametrize("low", [False, True])
def test_a_pixel_that_is_no_number_still_shows(low: bool) -> None:
    plain, packed, _ = plain_and_packed(traced(Residual()), low)
    pixels = noise(2)
    pixels[0, 1, 9, 9] = float("nan")
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=low):
        assert torch.equal(packed(pixels).isnan(), plain(pixels).isnan())


def test_several_threads_at_once_get_the_same() -> None:
    plain, packed, _ = plain_and_packed(traced(Residual()), False)
    batches = [noise(count) for count in (1, 2, 3, 4) * 5]
    with torch.no_grad(), ThreadPoolExecutor(4) as pool:
        for pixels, output in zip(batches, pool.map(packed, batches), strict=True):
            torch.testing.assert_close(output, plain(pixels), rtol=1e-5, atol=1e-5)


def kept(graph: Graph, folder: Path) -> ProgramRuntime:
    place = ProgramFile(folder / "kept.pt", "key")
    place.keep(Program(graph))
    return ProgramRuntime(graph, "cpu", place.path.open("rb"))


@pytest.fixture
def several_layers() -> Graph:
    torch.manual_seed(0)
    layers = [nn.Conv2d(BANDS, 64, 5, padding=2), nn.ReLU(), nn.Conv2d(64, 128, 5, padding=2)]
    return traced(nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(128, 2, 5, padding=2)))


def test_numbers_are_the_same_for_other_batches_than_expected(
    several_layers: Graph, tmp_path: Path
) -> None:
    plain, runtime = built(several_layers, "cpu"), kept(several_layers, tmp_path)
    assert torch.float32 in several_layers.packs
    with torch.inference_mode():
        for expected in (Batches(2, 1), Batches(1, 2), Batches(8, 1)):
            for count, threads in ((1, 1), (2, 1), (5, 1), (1, 2), (5, 2)):
                with runtime.expecting(expected), computing_with(threads):
                    result, wanted = runtime.forward(noise(count)), plain(noise(count))
                torch.testing.assert_close(result, wanted, rtol=1e-5, atol=1e-5)


def test_expectations_change_under_way(several_layers: Graph, tmp_path: Path) -> None:
    plain, runtime = built(several_layers, "cpu"), kept(several_layers, tmp_path)

    def run(number: int) -> Tensor:
        expected = Batches(1 + number % 3, 1 + number % 2)
        low = torch.autocast("cpu", torch.bfloat16, enabled=number % 5 == 4)
        with runtime.expecting(expected, first=number % 2 == 0), torch.inference_mode(), low:
            return runtime.forward(noise(2)).float()

    with torch.inference_mode():
        wanted = plain(noise(2))
    with ThreadPoolExecutor(4) as pool:
        for number, result in enumerate(pool.map(run, range(40))):
            atol = 0.05 if number % 5 == 4 else 1e-5
            torch.testing.assert_close(result, wanted, rtol=0, atol=atol)


def test_weights_that_are_there_are_not_read_again(several_layers: Graph, tmp_path: Path) -> None:
    runtime = kept(several_layers, tmp_path)
    (tmp_path / "kept.pt").write_bytes(b"")  # the same file, which the runtime holds open
    with torch.inference_mode():
        before = runtime.forward(noise(2))
        with runtime.expecting(Batches(2, 1)):
            torch.testing.assert_close(runtime.forward(noise(2)), before, rtol=1e-5, atol=1e-5)
            with runtime.expecting(Batches(8, 1)):  # a later scene's, which has to wait
                torch.testing.assert_close(runtime.forward(noise(2)), before, rtol=1e-5, atol=1e-5)


class Late:
    """Pixels that arrive only when they are let, with their network already chosen."""

    def __init__(self) -> None:
        self.asked, self.let = threading.Event(), threading.Event()

    def to(self, *_: object, **__: object) -> Tensor:
        self.asked.set()
        assert self.let.wait(60)
        return noise(2)


def test_replaced_weights_go_with_the_last_batch_that_uses_them(
    several_layers: Graph, tmp_path: Path
) -> None:
    runtime, late = kept(several_layers, tmp_path), Late()

    def networks() -> int:
        return sum(issubclass(type(item), fx.GraphModule) for item in gc.get_objects())

    gc.collect()
    gc.disable()  # whatever it would find some time
    try:
        before = networks()
        with ThreadPoolExecutor(1) as pool, torch.no_grad(), runtime.expecting(Batches(2, 1)):
            under_way = pool.submit(runtime.forward, late)  # type: ignore[arg-type]
            assert late.asked.wait(60)
            with runtime.expecting(Batches(8, 1), first=True):
                runtime.forward(noise(2))
                assert networks() == before + 1
                late.let.set()
                under_way.result()
                assert networks() == before
    finally:
        late.let.set()
        gc.enable()


class Mixing(nn.Module):
    """What a patch gives depends on those that it is computed with."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=0, keepdim=True)


def takes_fewer(graph: Graph, folder: Path, expected: Batches, *, low: bool = False) -> bool:
    runtime = kept(graph, folder)
    with runtime.expecting(expected), torch.autocast("cpu", torch.bfloat16, enabled=low):
        return runtime.takes_fewer()


def test_a_patch_may_be_computed_with_fewer_where_that_changes_nothing(tmp_path: Path) -> None:
    alone, together = traced(nn.ReLU()), traced(nn.Sequential(nn.ReLU(), Mixing()))
    assert (alone.steady, together.steady) == (PACKABLE, ())
    assert takes_fewer(alone, tmp_path, Batches(2, 1))
    assert takes_fewer(alone, tmp_path, Batches(2, 1), low=True) == HAS_BFLOAT16
    assert not takes_fewer(together, tmp_path, Batches(2, 1))


def test_what_was_seen_on_another_processor_is_not_known_here(tmp_path: Path) -> None:
    graph = dataclasses.replace(traced(nn.ReLU()), seen_on="another")
    assert graph.steady == PACKABLE
    assert not takes_fewer(graph, tmp_path, Batches(2, 1))


def test_weights_for_two_patches_are_told_from_those_for_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    graph = traced(nn.Sequential(nn.Conv2d(BANDS, 256, 3), nn.Conv2d(256, 256, 3)))
    orders = []
    for patches in (1, 2):
        packed = built(graph, "cpu")
        pack_weights(packed, graph.convolved, Batches(patches, 1))
        weights = [buffer for buffer in packed.buffers() if buffer.is_mkldnn]
        assert len(weights) == 2
        orders.append([torch.ops.mkldnn._get_mkldnn_serialized_md(it).tolist() for it in weights])
    steady = dataclasses.replace(graph, steady=PACKABLE)
    assert takes_fewer(steady, tmp_path, Batches(2, 1)) == (orders[0] == orders[1])


def test_elsewhere_than_on_a_processor_nothing_is_packed() -> None:
    assert pack_weights(built(traced(Residual()), "meta"), {}, Batches(2, 1)).count == 0


def test_plain_weights_are_kept(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(BANDS, 64, 5, padding=2), nn.Conv2d(64, 2, 5, padding=2))
    graph = traced(network)
    assert graph.packs == PACKABLE
    place = ProgramFile(tmp_path / "kept.pt", "key")
    place.keep(Program(graph))
    with place.path.open("rb") as file:
        found = graph_in(file)
    assert (found.packs, found.steady) == (PACKABLE, graph.steady)
    assert found.seen_on == graph.seen_on == instruction_sets()
    assert all(torch.equal(found.tensors[name], graph.tensors[name]) for name in graph.tensors)


class Viewing(nn.Module):
    """Takes the order of its convolution's result for granted."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(BANDS, 64, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x.contiguous()).view(-1, 64 * SIDE, SIDE).view(-1, 64, SIDE, SIDE)


def test_a_network_that_wants_its_weights_plain_has_them_plain() -> None:
    network, spec = Viewing().eval(), InputSpec(1, SIDE, (("", BANDS),))
    assert not graph_of(network, network, spec, "cpu").packs


LOADS = """
import sys
from pathlib import Path
import torch
from geostudio_dagster.models.modules import ProgramRuntime
from geostudio_dagster.models.packing import Batches
from geostudio_dagster.models.programs import ProgramFile
from geostudio_dagster.prediction.report import peak_rss

path = Path(sys.argv[1])
runtime = ProgramRuntime(ProgramFile(path, "key").read().graph, "cpu", path.open("rb"))
before = peak_rss()
with runtime.expecting(Batches(2, 1)), torch.inference_mode():
    runtime.forward(torch.zeros((2, 4, 24, 24)))
print(peak_rss() - before)
"""


def test_packed_weights_are_not_beside_plain_ones(tmp_path: Path) -> None:
    layers = [nn.Conv2d(1024, 1024, 3, padding=1) for _ in range(6)]  # 226 MB
    graph = traced(nn.Sequential(nn.Conv2d(BANDS, 1024, 3), *layers, nn.Conv2d(1024, 2, 3)))
    assert torch.float32 in graph.packs
    path = tmp_path / "wide.pt"
    ProgramFile(path, "key").keep(Program(graph))
    command = [sys.executable, "-c", LOADS, path]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(done.stdout) < 120e6
