"""Artifacts on disk: deterministic keys, atomic commits, digests.

A file is either absent or complete: it is written under ``scratch/``, flushed to disk, then
renamed to its key. Redoing the same work replaces it by an equal file.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from uuid import uuid4

from geostudio_dagster.errors import NotFound
from geostudio_dagster.removal import remove_tree

_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_CHUNK = 1 << 20
_HOST = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A committed artifact: its key, its size in bytes and its SHA-256 (hex)."""

    key: str
    size: int
    sha256: str


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, hex, read in constant memory."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def task_key(request_id: str, task_id: str, name: str) -> str:
    """Key of a task's artifact, such as ``<request>/<task>/<task>_pred.tif``."""
    return f"{request_id}/{task_id}/{name}"


def request_key(request_id: str, name: str) -> str:
    """Key of an artifact of the whole request, such as ``<request>/<request>_tasks.geojson``."""
    return f"{request_id}/{name}"


class LocalStorage:
    """Artifacts below one folder of a local or shared file system."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._scratch = root.parent / "scratch"

    def path(self, key: str) -> Path:
        """Where the artifact of ``key`` lies (or would lie).

        Raises:
            ValueError: the key has a segment that is not a plain file name.
        """
        segments = PurePosixPath(key).parts
        if not segments or not all(_SEGMENT.fullmatch(segment) for segment in segments):
            raise ValueError(f"{key!r} is not a storage key")
        return self.root.joinpath(*segments)

    def uri(self, key: str) -> str:
        """The artifact's address, ``file://`` here."""
        return self.path(key).as_uri()

    def exists(self, key: str) -> bool:
        """Whether the artifact is committed."""
        return self.path(key).is_file()

    def read_bytes(self, key: str) -> bytes:
        """The artifact's bytes.

        Raises:
            NotFound: nothing is committed under the key.
        """
        try:
            return self.path(key).read_bytes()
        except FileNotFoundError:
            raise NotFound(f"There is no stored file {key}.") from None

    def scratch(self, name: str, run_id: str = "") -> Path:
        """A fresh, empty folder for the temporary files of one piece of work by one run.

        What other runs left under the name goes: a killed one its leavings, and one that lives
        on, though it lost the work, the folder that it could have disturbed this one from. The
        caller must hold the lease of that work.
        """
        remove_tree(self._scratch / name)
        folder = self._scratch / name / run_id
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def scratch_file(self, name: str) -> Path:
        """Where a temporary file of that name, nobody else's, may be written."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        return self._scratch / name

    def scratch_entries(self) -> list[Path]:
        """What lies in the scratch folder, in the order of its names."""
        return sorted(self._scratch.iterdir()) if self._scratch.is_dir() else []

    def discard_scratch(self, name: str, run_id: str = "") -> None:
        """Remove the run's scratch folder of ``name``, if it is there."""
        remove_tree(self._scratch / name / run_id)
        with suppress(OSError):  # another run's is in it, or it is gone already
            (self._scratch / name).rmdir()

    def commit(self, source: Path, key: str) -> StoredFile:
        """Move a finished scratch file to its key, durably and atomically."""
        target = self.path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        with source.open("rb+") as stream:
            os.fsync(stream.fileno())
        stored = StoredFile(key, source.stat().st_size, sha256_of(source))
        source.replace(target)
        _fsync_folder(target.parent)
        return stored

    def commit_once(self, source: Path, key: str) -> bool:
        """Give a finished scratch file its key unless there is a file already; whether it did."""
        target = self.path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        with source.open("rb+") as stream:
            os.fsync(stream.fileno())
        try:
            os.link(source, target)
        except FileExistsError:
            return False
        _fsync_folder(target.parent)
        return True

    def commit_bytes(self, data: bytes, key: str) -> StoredFile:
        """Store ``data`` under ``key``, durably and atomically."""
        # In scratch like any other file: a process that dies leaves nothing among artifacts, and
        # what it leaves in scratch goes when the same key is stored again.
        self._scratch.mkdir(parents=True, exist_ok=True)
        name = f"bytes-{hashlib.sha256(key.encode()).hexdigest()[:24]}.{_HOST}"
        for left in self._scratch.glob(f"{name}.*"):
            if not _is_alive(int(left.suffixes[-2][1:])):
                left.unlink(missing_ok=True)
        source = self._scratch / f"{name}.{os.getpid()}.{uuid4().hex}"
        try:
            source.write_bytes(data)
            return self.commit(source, key)
        finally:
            source.unlink(missing_ok=True)

    def delete(self, key: str) -> None:
        """Remove an artifact, or the whole folder of artifacts below a key."""
        path = self.path(key)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_alive(pid: int) -> bool:
    """Whether a process of this machine lives."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
