"""``--output s3://...``: the object appears complete or not at all."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from geostudio_dagster.errors import TaskError
from geostudio_dagster.prediction.destination import BucketDestination
from geostudio_dagster_tests.conftest import write_scene
from geostudio_dagster_tests.prediction.test_command import call, engine

PART = 8 * 1024**2  # bytes from which boto3 uploads in parts


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files; nothing may be left in it."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_the_object_is_the_file_that_the_engine_makes(
    bundle_folder: Path, tmp_path: Path, bucket: Any, scratch: Path
) -> None:
    scene = write_scene(tmp_path / "in", "scene.tif", size=300)
    result = call(bundle_folder, [scene], "s3://predictions/2024/o.tif", "--json")
    assert result.exit_code == 0, result.output
    assert '"output": "s3://predictions/2024/o.tif"' in result.stdout
    found = bucket.Object("2024/o.tif").get()
    assert found["Body"].read() == engine(bundle_folder, scene, tmp_path / "p.tif")
    assert found["ContentType"].startswith("image/tiff")
    assert list(scratch.iterdir()) == []


def test_a_quicklook_lies_beside_it(
    bundle_folder: Path, tmp_path: Path, bucket: Any, scratch: Path
) -> None:
    scene = write_scene(tmp_path / "in", "scene.tif", size=64)
    look = "s3://predictions/o.png"
    result = call(bundle_folder, [scene], "s3://predictions/o.tif", "--quicklook", look)
    assert result.exit_code == 0, result.output
    found = bucket.Object("o.png").get()
    assert found["ContentType"] == "image/png"
    assert found["Body"].read().startswith(b"\x89PNG")
    assert list(scratch.iterdir()) == []


def test_a_quicklook_that_cannot_be_uploaded_leaves_the_output(
    bundle_folder: Path, tmp_path: Path, bucket: Any, failing_port: int
) -> None:
    scene = write_scene(tmp_path / "in", "scene.tif", size=64)
    target = tmp_path / "o.tif"
    look = "s3://predictions/never.png"
    failing = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{failing_port}"}
    result = call(bundle_folder, [scene], target, "--quicklook", look, **failing)
    assert result.exit_code == 1
    said = " ".join(result.stderr.split())
    assert "o.tif is complete, but not its quicklook s3://predictions/never.png" in said
    assert target.read_bytes() == engine(bundle_folder, scene, tmp_path / "p.tif")


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("s3://no-such-bucket/o.tif", "output: there is no bucket no-such-bucket; make it first."),
        ("s3://predictions", "names no object; write s3://bucket/key.tif."),
        ("s3://predictions/folder/", "names no object; write s3://bucket/key.tif."),
        ("gs://predictions/o.tif", "can't be written; give a path or s3://bucket/key."),
    ],
)
def test_what_can_never_be_written_is_told_before_any_work(
    bundle_folder: Path, tmp_path: Path, bucket: Any, output: str, sentence: str
) -> None:
    result = call(bundle_folder, [tmp_path / "absent.tif"], output)
    assert result.exit_code == 2
    assert sentence in " ".join(result.stderr.split())
    assert list(bucket.objects.all()) == []


class _FailingPart(BaseHTTPRequestHandler):
    """Hands everything on to the server behind it, but never takes a second part, or ``never``."""

    protocol_version = "HTTP/1.1"
    behind: int

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "partNumber=2" in self.path or "never" in self.path:
            self._answer(500, b"", {})
            return
        other = HTTPConnection("127.0.0.1", self.behind)
        other.request(self.command, self.path, body, dict(self.headers))
        with other.getresponse() as answer:
            headers = {name: answer.headers[name] for name in ("ETag",) if name in answer.headers}
            self._answer(answer.status, answer.read(), headers)
        other.close()

    do_PUT = do_POST = do_DELETE = do_GET = _pass  # noqa: N815

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def failing_port(s3_port: int) -> Iterator[int]:
    handler = type("Handler", (_FailingPart,), {"behind": s3_port})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
    ).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def test_an_upload_that_breaks_off_leaves_nothing(
    tmp_path: Path, bucket: Any, failing_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.tif"
    path.write_bytes(bytes(2 * PART + 1))
    bucket.put_object(Key="o.tif", Body=b"before")
    with monkeypatch.context() as broken:
        broken.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{failing_port}")
        with pytest.raises(TaskError, match="could not be uploaded") as caught:
            BucketDestination("predictions", "o.tif").deliver(path)
    assert (caught.value.code, caught.value.retryable) == ("not_uploaded", True)
    assert bucket.Object("o.tif").get()["Body"].read() == b"before"
    assert list(bucket.multipart_uploads.all()) == []
    BucketDestination("predictions", "o.tif").deliver(path)
    assert bucket.Object("o.tif").content_length == 2 * PART + 1
