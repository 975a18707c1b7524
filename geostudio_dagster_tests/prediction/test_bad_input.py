"""Bad input: the error names the file and where in it, and no output appears."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import yaml
from affine import Affine

from geostudio_dagster.errors import InvalidRequest, TaskError
from geostudio_dagster.models.bundle import Bundle, load_bundle
from geostudio_dagster.prediction import PredictOptions, predict
from geostudio_dagster_tests.models.tunes import BANDS, CKPT, make_tune
from geostudio_dagster_tests.prediction.builders import Identity, write_bundle, write_raster

PIXELS = np.random.default_rng(0).integers(1, 9999, (3, 400, 300)).astype(np.uint16)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "identity", Identity())


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., TaskError]:
    """Predicts, expects an error, and makes sure that nothing is left of it."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()

    def attempt(source: Path | Sequence[Path], bundle: Bundle, **more: Any) -> TaskError:
        with pytest.raises(TaskError) as caught:
            predict(source, bundle, tmp_path / "out" / "o.tif", scratch=scratch, **more)
        assert not (tmp_path / "out").exists()
        assert list(scratch.iterdir()) == []
        return caught.value

    return attempt


def scene(path: Path, pixels: np.ndarray = PIXELS, **profile: Any) -> Path:
    return write_raster(path, pixels, interleave="pixel", **profile)


def spoiled(path: Path, row: int = 0, col: int = 0) -> Path:
    """The raster with one block overwritten by noise; all its headers stay right."""
    with rasterio.open(path) as file:
        place = f"{col}_{row}"
        offset = int(file.get_tag_item(f"BLOCK_OFFSET_{place}", "TIFF", bidx=1))
        size = int(file.get_tag_item(f"BLOCK_SIZE_{place}", "TIFF", bidx=1))
    with path.open("rb+") as stream:
        stream.seek(offset)
        stream.write(np.random.default_rng(size).bytes(size))
    return path


def all_spoiled(path: Path) -> Path:
    """The raster with every block overwritten: whoever reads one pixel fails."""
    with rasterio.open(path) as file:
        blocks = [place for place, _ in file.block_windows(1)]
    for row, col in blocks:
        spoiled(path, row, col)
    return path


def test_a_corrupt_block_is_named_by_file_and_place(
    tmp_path: Path, bundle: Bundle, refused: Callable[..., TaskError]
) -> None:
    path = spoiled(scene(tmp_path / "s.tif"), row=5, col=2)
    error = refused(path, bundle)
    assert error.code == "corrupt"
    assert "s.tif can't be read at columns 0 to 300, rows 256 to 400" in str(error)


def test_a_corrupt_block_of_a_band_file_is_named_by_that_file(
    tmp_path: Path, bundle: Bundle, refused: Callable[..., TaskError]
) -> None:
    paths = [scene(tmp_path / f"B{n}.tif", PIXELS[n : n + 1], names=[f"B{n}"]) for n in range(3)]
    spoiled(paths[1])
    error = refused(paths, bundle)
    assert error.code == "corrupt"
    assert str(error).startswith("B1.tif can't be read at columns 0 to 64, rows 0 to 256")


def test_a_truncated_file_is_named(
    tmp_path: Path, bundle: Bundle, refused: Callable[..., TaskError]
) -> None:
    path = scene(tmp_path / "s.tif")
    with path.open("rb+") as stream:
        stream.truncate(path.stat().st_size // 2)
    error = refused(path, bundle)
    assert error.code == "corrupt"
    assert "s.tif can't be read at columns" in str(error)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize(
    ("profile", "code"),
    [
        ({"crs": None}, "not_georeferenced"),
        ({"transform": Affine.identity()}, "not_georeferenced"),
        ({"transform": Affine(8, 6, 500_000, 6, -8, 5_300_000)}, "rotated_grid"),
    ],
)
def test_scenes_without_a_usable_grid_are_named(
    tmp_path: Path,
    bundle: Bundle,
    refused: Callable[..., TaskError],
    profile: dict[str, Any],
    code: str,
) -> None:
    error = refused(scene(tmp_path / "s.tif", **profile), bundle)
    assert error.code == code
    assert str(error).startswith("s.tif ")


@pytest.mark.parametrize(
    ("pixels", "profile", "words"),
    [
        (
            PIXELS[2:, ::2, ::2],
            {"transform": Affine(20, 0, 500_000, 0, -20, 5_300_000)},
            "B2.tif (150 x 200 pixels of 20 from 500000, 5300000) is not on the grid of B0.tif (",
        ),
        (PIXELS[2:], {"crs": "EPSG:32634"}, "B2.tif (CRS EPSG:32634) is not on the grid of B0"),
    ],
)
def test_bands_of_mixed_resolutions_or_crs_are_named(
    *,
    tmp_path: Path,
    bundle: Bundle,
    refused: Callable[..., TaskError],
    pixels: np.ndarray,
    profile: dict[str, Any],
    words: str,
) -> None:
    paths = [scene(tmp_path / f"B{n}.tif", PIXELS[n : n + 1], names=[f"B{n}"]) for n in range(2)]
    paths.append(scene(tmp_path / "B2.tif", pixels, names=["B2"], **profile))
    error = refused(paths, bundle)
    assert error.code == "grids_differ"
    assert words in str(error)


@pytest.mark.parametrize("window", [(10, 20, 0, 5), (10, 20, 5, 0), (299, 0, 2, 2)])
def test_windows_that_are_empty_or_outside_are_named(
    tmp_path: Path,
    bundle: Bundle,
    refused: Callable[..., TaskError],
    window: tuple[int, int, int, int],
) -> None:
    error = refused(scene(tmp_path / "s.tif"), bundle, window=window)
    assert error.code == "bad_window"
    assert f"The window {window} (column, row, width, height) is not inside s.tif" in str(error)


def test_a_scene_that_is_replaced_while_it_is_read_makes_no_output(
    tmp_path: Path, bundle: Bundle, refused: Callable[..., TaskError]
) -> None:
    path = scene(tmp_path / "s.tif")
    other = scene(tmp_path / "other.tif", PIXELS[::-1])

    def replace(done: int, total: int) -> None:
        if other.exists():
            other.replace(path)

    error = refused(path, bundle, progress=replace, options=PredictOptions(memory=1))
    assert (error.code, error.retryable) == ("input_changed", True)
    assert "s.tif changed while it was read" in str(error)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("B0", "B1"), "s.tif has 2 bands (B0, B1), but the model needs 3: B0, B1, B2."),
        (("B0", "B1", "B7"), "It lacks B2. Give a scene with these bands, named like this."),
    ],
)
def test_bands_that_are_missing_are_told_before_a_pixel_is_read(
    *,
    tmp_path: Path,
    bundle: Bundle,
    refused: Callable[..., TaskError],
    names: tuple[str, ...],
    words: str,
) -> None:
    path = all_spoiled(scene(tmp_path / "s.tif", PIXELS[: len(names)], names=names))
    error = refused(path, bundle)
    assert error.code == "too_few_bands"
    assert words in str(error)


def test_a_checkpoint_that_does_not_fit_is_told_before_a_pixel_is_read(
    tmp_path: Path, refused: Callable[..., TaskError]
) -> None:
    tune, _ = make_tune(tmp_path / "tune", "segmentation")
    torch.save({"state_dict": {"model.x": torch.zeros(1)}}, tune.folder / CKPT)
    pixels = np.random.default_rng(1).integers(1, 9999, (4, 100, 100)).astype(np.uint16)
    path = all_spoiled(scene(tmp_path / "s.tif", pixels, names=BANDS))
    error = refused(path, load_bundle(tune.folder))
    assert error.code == "model_unusable"
    assert f"{CKPT} does not fit the model in config_deploy.yaml" in str(error)


def test_a_model_of_other_bands_is_told_before_a_pixel_is_read(
    tmp_path: Path, refused: Callable[..., TaskError]
) -> None:
    wrong = write_bundle(tmp_path / "wrong", torch.nn.Conv2d(5, 1, 1), bands=3)
    error = refused(all_spoiled(scene(tmp_path / "s.tif")), wrong)
    assert error.code == "model_unusable"
    assert "does not take 3 planes of 32 x 32 pixels" in str(error)


def test_manifests_name_the_key_that_is_wrong(tmp_path: Path, bundle: Bundle) -> None:
    document = yaml.safe_load((bundle.folder / "bundle.yaml").read_text())
    for change, words in (
        ({"runtime": "tensorflow"}, r"bundle\.yaml: runtime: "),
        ({"weights": "../model.pt"}, r"bundle\.yaml: weights: .*inside the bundle"),
        ({"files": ["../x"]}, r"bundle\.yaml: files: .*inside the bundle"),
        ({"files": ["absent.bin"]}, r"lacks absent\.bin"),
        ({"weights": ""}, "weights must name the model's file"),
        ({"bands": [{"name": "B0", "scale": 0}]}, r"bands\.0\.scale: .*must not be 0"),
        ({"bands": [{"name": "B0", "offset": float("nan")}]}, r"bands\.0\.offset: .*finite"),
    ):
        (tmp_path / "model.pt").write_bytes(b"")
        (tmp_path / "bundle.yaml").write_text(yaml.safe_dump(document | change))
        with pytest.raises(InvalidRequest, match=words):
            load_bundle(tmp_path)
