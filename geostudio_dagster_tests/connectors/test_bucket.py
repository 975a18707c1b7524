"""Scenes in buckets read where they are: of one version throughout, and checked like others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import rasterio

from geostudio_dagster.connectors.bucket import BucketFile
from geostudio_dagster.errors import TaskError
from geostudio_dagster.raster.patches import Box
from geostudio_dagster.raster.scene import Scene
from geostudio_dagster_tests.connectors.test_ranges import MANIFEST, window
from geostudio_dagster_tests.prediction.builders import write_raster

PIXELS = 3000 + np.cumsum(np.random.default_rng(1).integers(-20, 21, (2, 900, 700)), axis=2)
PIXELS = PIXELS.astype(np.uint16)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_raster(tmp_path / "s.tif", PIXELS, block=256, predictor=2, interleave="pixel")


def test_pixels_are_those_of_the_object(bucket: Any, path: Path) -> None:
    bucket.upload_file(str(path), "2024/s.tif")
    with BucketFile("predictions", "2024/s.tif") as file, Scene(file, MANIFEST) as scene:
        np.testing.assert_array_equal(window(scene, scene.core(None)), PIXELS)
        part = Box(300, 500, 257, 130)
        np.testing.assert_array_equal(window(scene, part), PIXELS[:, 500:630, 300:557])


def test_an_object_that_is_replaced_while_it_is_read_is_noticed(bucket: Any, path: Path) -> None:
    bucket.upload_file(str(path), "s.tif")
    with BucketFile("predictions", "s.tif") as file, Scene(file, MANIFEST) as scene:
        window(scene, Box(0, 0, 10, 10))
        other = write_raster(path, PIXELS[::-1], block=256, predictor=2, interleave="pixel")
        bucket.upload_file(str(other), "s.tif")
        with pytest.raises(TaskError, match=r"s3://predictions/s\.tif changed while it") as caught:
            window(scene, scene.core(None))
    assert (caught.value.code, caught.value.retryable) == ("input_changed", True)


def test_a_hole_in_an_object_is_told(bucket: Any, path: Path) -> None:
    with rasterio.open(path) as file:
        offset = int(file.get_tag_item("BLOCK_OFFSET_1_1", "TIFF", bidx=1))
    content = bytearray(path.read_bytes())
    content[offset + 9000 : offset + 20_000] = bytes(11_000)
    bucket.put_object(Key="s.tif", Body=bytes(content))
    with (
        BucketFile("predictions", "s.tif") as remote,
        Scene(remote, MANIFEST) as scene,
        pytest.raises(TaskError, match="at column 256, row 256 is damaged") as caught,
    ):
        window(scene, scene.core(None))
    assert caught.value.code == "corrupt"


@pytest.mark.parametrize(("where", "key"), [("predictions", "absent.tif"), ("absent", "s.tif")])
def test_what_is_not_there_is_told(bucket: Any, where: str, key: str) -> None:
    with pytest.raises(TaskError, match=f"s3://{where}/{key} does not exist") as caught:
        BucketFile(where, key)
    assert caught.value.code == "not_found"
    assert bucket.name == "predictions"


def test_without_credentials_or_profile_one_is_told_so(
    bucket: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.upload_file(str(path), "s.tif")
    with monkeypatch.context() as without:
        without.setenv("AWS_PROFILE", "nobody")
        with pytest.raises(TaskError, match=r"nobody.*; check credentials and profile") as caught:
            BucketFile("predictions", "s.tif")
    assert (caught.value.code, caught.value.retryable) == ("forbidden", False)
    with monkeypatch.context() as without:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            without.delenv(name)
        without.setattr(boto3, "DEFAULT_SESSION", None)  # it remembers credentials
        without.setenv("AWS_EC2_METADATA_DISABLED", "true")
        without.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        with pytest.raises(TaskError, match=r"credentials.*AWS_NO_SIGN_REQUEST=YES"):
            BucketFile("predictions", "s.tif")


def test_a_place_that_nobody_answers_at_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_S3_ENDPOINT", "127.0.0.1:9")
    monkeypatch.setenv("AWS_HTTPS", "NO")
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr("geostudio_dagster.connectors.bucket._PATIENCE_S", 0.0)
    with pytest.raises(TaskError, match=r"s3://predictions/s\.tif can't be reached") as caught:
        BucketFile("predictions", "s.tif")
    assert caught.value.retryable
