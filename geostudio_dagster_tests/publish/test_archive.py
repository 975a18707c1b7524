from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from geostudio_dagster.publish import archive
from geostudio_dagster.publish.archive import write_archive


def files(folder: Path) -> list[Path]:
    folder.mkdir(exist_ok=True)
    (folder / "b.tif").write_bytes(b"II*\0" + bytes(range(256)) * 9000)
    (folder / "a.json").write_text('{"ü": 1}', "utf-8")
    return [folder / "b.tif", folder / "a.json"]


def test_equal_files_give_equal_bytes_whatever_their_order_times_and_modes(tmp_path: Path) -> None:
    first, second = files(tmp_path / "one"), files(tmp_path / "two")
    os.utime(second[0], (1, 1))
    second[1].chmod(0o600)
    write_archive(first, tmp_path / "first.zip")
    write_archive(second[::-1], tmp_path / "second.zip")
    assert (tmp_path / "first.zip").read_bytes() == (tmp_path / "second.zip").read_bytes()


def test_the_archive_holds_the_files_readable_and_uncompressed(tmp_path: Path) -> None:
    sources = files(tmp_path / "in")
    write_archive(sources, tmp_path / "all.zip")
    with zipfile.ZipFile(tmp_path / "all.zip") as package:
        assert package.testzip() is None
        assert package.namelist() == ["a.json", "b.tif"]
        assert package.read("b.tif") == sources[0].read_bytes()
        for entry in package.infolist():
            assert entry.compress_type == zipfile.ZIP_STORED
            assert entry.date_time == (1980, 1, 1, 0, 0, 0)
            assert entry.external_attr >> 16 == 0o100644


def test_nothing_to_pack_is_an_empty_archive(tmp_path: Path) -> None:
    write_archive([], tmp_path / "empty.zip")
    with zipfile.ZipFile(tmp_path / "empty.zip") as package:
        assert package.namelist() == []


def test_files_beyond_the_limits_of_zip_use_zip64(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)  # instead of writing 4 GiB
    sources = files(tmp_path / "in")
    write_archive(sources, tmp_path / "all.zip")
    with zipfile.ZipFile(tmp_path / "all.zip") as package:
        assert package.testzip() is None
        assert package.getinfo("b.tif").extract_version == zipfile.ZIP64_VERSION


def test_a_large_file_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    original = archive.shutil.copyfileobj

    def watched(source: object, target: object, length: int) -> None:
        sizes.append(length)
        original(source, target, length)  # type: ignore[arg-type]

    monkeypatch.setattr(archive.shutil, "copyfileobj", watched)
    write_archive(files(tmp_path / "in"), tmp_path / "all.zip")
    assert sizes == [1 << 20, 1 << 20]


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    one, two = files(tmp_path / "one"), files(tmp_path / "two")
    with pytest.raises(ValueError, match="same name"):
        write_archive([*one, *two], tmp_path / "all.zip")
