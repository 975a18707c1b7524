"""Byte-deterministic zip archives of a task's files."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest date that zip can hold
_MODE = 0o100644 << 16
_UNIX = 3
_CHUNK = 1 << 20


def write_archive(files: Sequence[Path], target: Path) -> None:
    """Write ``files`` into the zip ``target``: equal files give an equal archive.

    Entries are sorted by name and stored uncompressed (COGs are compressed inside already);
    dates and permissions are fixed. Files are streamed, and Zip64 is used where sizes need it.
    The caller puts the finished archive in place atomically (``storage.commit``).

    Raises:
        ValueError: two files have the same name.
        FileNotFoundError: a file is missing.
    """
    by_name = {path.name: path for path in files}
    if len(by_name) != len(files):
        raise ValueError("an archive can't hold two files of the same name")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name in sorted(by_name):
            _add(archive, by_name[name])


def _add(archive: zipfile.ZipFile, path: Path) -> None:
    entry = zipfile.ZipInfo(path.name, _EPOCH)
    entry.external_attr = _MODE
    entry.create_system = _UNIX
    entry.compress_type = zipfile.ZIP_STORED
    # With the size known beforehand, zipfile decides by itself whether the entry needs Zip64.
    entry.file_size = path.stat().st_size
    with path.open("rb") as source, archive.open(entry, "w") as stream:
        shutil.copyfileobj(source, stream, _CHUNK)
