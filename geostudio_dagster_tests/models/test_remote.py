"""Models behind HTTP: the same pixels as here, and one clear error for whatever goes wrong."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from geostudio_dagster.errors import InvalidRequest, TaskError
from geostudio_dagster.models.bundle import Bundle, load_bundle
from geostudio_dagster.models.runtime import load_runtime
from geostudio_dagster.prediction import predict
from geostudio_dagster_tests.models.model_server import ModelServer, serving
from geostudio_dagster_tests.prediction.builders import (
    COLOURS,
    Convolutions,
    noise,
    read,
    whole_forward,
    write_raster,
)

NETWORK = Convolutions(3, 4).eval()


def forward(batch: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        output: np.ndarray = NETWORK(torch.from_numpy(batch)).numpy()
    return output


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelServer]:
    monkeypatch.setenv("GEOSTUDIO_FETCH__ALLOWED_HOSTS", '["127.0.0.1"]')
    with serving(forward) as state:
        yield state


def bundle_of(folder: Path, endpoint: str | dict[str, Any], **manifest: Any) -> Bundle:
    """A bundle that is a manifest alone: a segmentation of four classes."""
    folder.mkdir(parents=True, exist_ok=True)
    classes = [{"value": n, "name": f"c{n}", "colour": COLOURS[n]} for n in range(4)]
    document = {
        "name": "remote",
        "runtime": "http",
        "endpoint": endpoint,
        "task": "segmentation",
        "bands": [{"name": f"B{n}"} for n in range(3)],
        "patch": {"size": 32, "overlap": 8, "trim": 3},
        "classes": classes,
    }
    (folder / "bundle.yaml").write_text(yaml.safe_dump(document | manifest))
    return load_bundle(folder)


def scene_of(tmp_path: Path) -> tuple[Path, np.ndarray]:
    pixels = np.random.default_rng(0).normal(size=(3, 150, 90)).astype(np.float32)
    return write_raster(tmp_path / "s.tif", pixels), pixels


def failure(folder: Path, endpoint: str | dict[str, Any]) -> TaskError:
    quick = endpoint if isinstance(endpoint, dict) else {"url": endpoint}
    with pytest.raises(TaskError) as caught:
        load_runtime(bundle_of(folder, {"attempts": 2} | quick))
    return caught.value


def test_a_tensor_endpoint_gives_what_the_network_gives(
    tmp_path: Path, server: ModelServer
) -> None:
    scene, pixels = scene_of(tmp_path)
    bundle = bundle_of(tmp_path / "b", server.url("/tensor"), task="regression", classes=[])
    report = predict(scene, bundle, tmp_path / "o.tif", scratch=tmp_path)
    np.testing.assert_allclose(read(tmp_path / "o.tif"), whole_forward(NETWORK, pixels), atol=2e-5)
    assert (report.batch_size, report.workers, report.dtype) == (8, 4, "float32")
    path, headers, body = server.asked[-1]
    assert (path, headers["content-type"]) == ("/tensor", "application/x-npy")
    sent = np.load(io.BytesIO(body))
    assert (sent.shape, sent.dtype) == ((8, 3, 32, 32), np.float32)
    assert 1 <= server.busiest <= 4
    assert "authorization" not in headers


def test_dates_are_sent_as_bands_by_dates(tmp_path: Path, server: ModelServer) -> None:
    server.forward = lambda batch: batch[:, :, 1] - batch[:, :, 0]
    bundle = bundle_of(
        tmp_path / "b", server.url("/tensor"), dates=2, task="regression", classes=[]
    )
    model = load_runtime(bundle)
    pixels = noise(8, 6, 32, 32)
    torch.testing.assert_close(model(pixels), pixels[:, 3:] - pixels[:, :3])


def test_requests_run_at_the_same_time_but_no_more_than_allowed(
    tmp_path: Path, server: ModelServer
) -> None:
    server.together = threading.Barrier(3)
    model = load_runtime(
        bundle_of(tmp_path / "b", {"url": server.url("/together"), "concurrency": 3})
    )
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(model, [torch.zeros(8, 3, 32, 32)] * 6))
    assert server.busiest == 3


def test_tokens_go_to_their_host_alone(
    tmp_path: Path, server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEOSTUDIO_ENDPOINTS__TOKENS", '{"127.0.0.1": "s3cret", "other": "x"}')
    load_runtime(bundle_of(tmp_path / "b", server.url("/tensor")))
    assert server.asked[0][1]["authorization"] == "Bearer s3cret"
    assert "s3cret" not in str(failure(tmp_path / "c", server.url("/403")))


@pytest.mark.parametrize("path", ["/busy", "/broken"])
def test_transient_failures_are_tried_again(tmp_path: Path, server: ModelServer, path: str) -> None:
    model = load_runtime(bundle_of(tmp_path / "b", server.url(path)))
    assert model.channels == 4
    assert server.seen[path[1:]] == {"/busy": 3, "/broken": 2}[path]


@pytest.mark.parametrize(
    ("path", "asked", "code", "words"),
    [
        ("/500", 2, "unreachable", "/500 answered HTTP 500."),
        ("/overloaded", 1, "unreachable", "answered HTTP 429."),
        ("/404", 1, "endpoint_refused", "/404 refuses the batch (HTTP 404): no, because"),
        ("/422", 1, "endpoint_refused", "refuses the batch (HTTP 422): no, because"),
        ("/moved", 1, "endpoint_refused", "redirects to /tensor; name that address"),
        ("/page", 1, "endpoint_wrong", "answers with something that is no NumPy file"),
        ("/objects", 1, "endpoint_wrong", "answers with something that is no NumPy file"),
        ("/integers", 1, "endpoint_wrong", "answers with int64 instead of floating-point"),
        ("/half", 1, "endpoint_wrong", "makes (8, 3, 16, 16) of (8, 3, 32, 32)"),
        ("/infinite", 1, "endpoint_wrong", "answers with numbers that are not finite"),
    ],
)
def test_what_goes_wrong_is_one_clear_error(
    *, tmp_path: Path, server: ModelServer, path: str, asked: int, code: str, words: str
) -> None:
    error = failure(tmp_path / "b", server.url(path))
    assert (error.code, error.retryable) == (code, code == "unreachable")
    assert words in str(error)
    assert server.seen[path[1:]] == asked


@pytest.mark.parametrize(
    "limits", [{"timeout_s": 0.3}, {"timeout_s": 5, "deadline_s": 0.6}], ids=str
)
@pytest.mark.parametrize("path", ["/silent", "/drip"])
def test_waiting_ends(
    tmp_path: Path, server: ModelServer, path: str, limits: dict[str, float]
) -> None:
    limits = {"deadline_s": 1.5} | limits
    error = failure(tmp_path / "b", {"url": server.url(path), **limits})
    assert (error.code, error.retryable) == ("unreachable", True)
    assert "did not answer in time" in str(error)


def test_answers_without_end_are_cut(
    tmp_path: Path, server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEOSTUDIO_ENDPOINTS__MAX_RESPONSE_BYTES", "100000")
    error = failure(tmp_path / "b", server.url("/endless"))
    assert error.code == "endpoint_wrong"
    assert "answers with more than 100000 bytes" in str(error)


def test_private_addresses_need_the_operators_word(
    tmp_path: Path, server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GEOSTUDIO_FETCH__ALLOWED_HOSTS")
    error = failure(tmp_path / "b", server.url("/tensor"))
    assert error.code == "forbidden_address"
    assert "127.0.0.1, which is not a public address" in str(error)
    assert server.asked == []


def test_a_server_that_dies_under_way_leaves_no_output(tmp_path: Path, server: ModelServer) -> None:
    scene, _ = scene_of(tmp_path)
    bundle = bundle_of(tmp_path / "b", {"url": server.url("/tensor"), "attempts": 1})
    load_runtime(bundle)
    calls = iter(range(100))

    def dying(batch: np.ndarray) -> np.ndarray:
        if next(calls) > 1:
            raise BrokenPipeError
        return forward(batch)

    server.forward = dying
    with pytest.raises(TaskError) as caught:
        predict(scene, bundle, tmp_path / "o.tif", scratch=tmp_path)
    assert caught.value.retryable
    assert not list(tmp_path.glob("o.*"))


@pytest.mark.parametrize(
    ("path", "plugin"),
    [
        ("/pooling", "terratorch_segmentation"),
        ("/pooling_plain", "terratorch_tm_segmentation"),
    ],
)
@pytest.mark.parametrize("shared", [False, True])
def test_a_pooling_endpoint_gives_the_classes(
    *,
    tmp_path: Path,
    server: ModelServer,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    plugin: str,
    shared: bool,
) -> None:
    scene, pixels = scene_of(tmp_path)
    endpoint = {"url": server.url(path), "payload": "pooling", "plugin": plugin, "model": "flood"}
    folder = tmp_path / "shared"
    folder.mkdir()
    if shared:
        endpoint["data_format"] = "path"
        monkeypatch.setenv("GEOSTUDIO_ENDPOINTS__SHARED_FOLDER", str(folder))
    bundle = bundle_of(tmp_path / "b", endpoint)
    report = predict(scene, bundle, tmp_path / "o.tif", scratch=tmp_path)
    expected = whole_forward(NETWORK, pixels).argmax(axis=0)
    # Classes vote where patches overlap; away from edges all votes are the same.
    same = read(tmp_path / "o.tif", 1) == expected
    assert same.mean() > 0.97
    assert len(np.unique(expected)) == 4
    assert report.batch_size == 1
    asked = json.loads(server.asked[-1][2])
    assert asked["model"] == "flood"
    assert asked["data"]["indices"] == [0, 1, 2]
    assert asked["data"]["data_format"] == ("path" if shared else "b64_json")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/pooling_strange", "of 4 in the manifest"),
        ("/pooling_small", "makes (1, 16, 32) of a patch of (32, 32)"),
        ("/page", "holds no GeoTIFF in data.data"),
    ],
)
def test_pooling_answers_are_checked(
    tmp_path: Path, server: ModelServer, path: str, words: str
) -> None:
    error = failure(tmp_path / "b", {"url": server.url(path), "payload": "pooling"})
    assert error.code == "endpoint_wrong"
    assert words in str(error)


def test_a_shared_folder_is_the_operators_to_name(tmp_path: Path, server: ModelServer) -> None:
    endpoint = {"url": server.url("/pooling"), "payload": "pooling", "data_format": "path"}
    error = failure(tmp_path / "b", endpoint)
    assert error.code == "model_unusable"
    assert "set GEOSTUDIO_ENDPOINTS__SHARED_FOLDER" in str(error)


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ({"endpoint": "ftp://host/x"}, "is not an http(s) URL"),
        ({"endpoint": "https://user:pw@host/x"}, "carries a user name or password"),
        ({"endpoint": None}, "endpoint goes with runtime: http"),
        ({"runtime": "onnx", "weights": "m.onnx"}, "endpoint goes with runtime: http"),
        ({"weights": "m.onnx"}, "leave out weights and config"),
        ({"bands": [{"name": "a", "modality": "S2"}]}, "takes one tensor, not modalities"),
        (
            {"endpoint": {"url": "https://host/x", "payload": "pooling"}, "dates": 2},
            "a pooling endpoint gives classes of a single date",
        ),
    ],
)
def test_manifests_that_make_no_endpoint_are_refused(
    tmp_path: Path, manifest: dict[str, Any], words: str
) -> None:
    endpoint = manifest.pop("endpoint", "https://models.example.org/flood")
    with pytest.raises(InvalidRequest) as caught:
        bundle_of(tmp_path / "b", endpoint, **manifest)
    assert words in str(caught.value)
    assert "pw" not in str(caught.value).replace("password", "")
