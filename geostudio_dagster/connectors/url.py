"""Scenes by address: look at one cheaply, and bring one within reach of the model."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from geostudio_dagster.connectors.addresses import (
    LocalScene,
    RemoteScene,
    UnacceptableAddressError,
    scene_address,
)
from geostudio_dagster.connectors.fetch import download, read_start
from geostudio_dagster.connectors.header import SceneHeader, check_scene, read_header
from geostudio_dagster.errors import TaskError
from geostudio_dagster.models.bundle import BundleManifest
from geostudio_dagster.settings import Settings
from geostudio_dagster.storage import LocalStorage, StoredFile, request_key, sha256_of

_HEAD_BYTES = 64 * 1024
_LOOK_TIMEOUT_S = 10.0
_LOCK_POLL_S = 0.1
_TIFF, _BIG_TIFF = 42, 43  # what follows the byte order in a TIFF file


@dataclass(frozen=True, slots=True)
class BroughtScene:
    """A checked scene on this machine's disk.

    Attributes:
        url: the address as messages show it, without secrets.
        path: the file. uri: its ``file://`` address.
        key: its storage key, None where the user's own file is read in place (``external``).
        size: bytes. sha256: hex; None for external files, which are not read through.
        modified_ns: modification time of an external file, nanoseconds since the epoch.
        header: its grid and bands.
    """

    url: str
    path: Path
    uri: str
    key: str | None
    size: int
    sha256: str | None
    modified_ns: int | None
    header: SceneHeader

    @property
    def external(self) -> bool:
        """Whether the file belongs to the user and lies outside storage."""
        return self.key is None

    @property
    def metadata(self) -> dict[str, Any]:
        """What is worth keeping beside the artifact, as JSON values."""
        return {
            "url": self.url,
            "external": self.external,
            "modified_ns": self.modified_ns,
            **self.header.facts,
        }


def look(url: str, settings: Settings) -> SceneHeader | None:
    """The header of a scene, for planning; a remote one costs one or two reads of 64 KiB.

    None where it cannot be had cheaply: the scene's own task will tell what is wrong with it.

    Raises:
        TaskError: as for :func:`bring`.
    """
    address = _address(url, settings)
    if isinstance(address, LocalScene):
        return read_header(address.path, str(address))
    return _look(address, settings)


def bring(
    url: str,
    *,
    settings: Settings,
    storage: LocalStorage,
    request_id: str,
    manifest: BundleManifest | None = None,
    planned_size: tuple[int, int] | None = None,
) -> BroughtScene:
    """Bring one scene and check that it can be used.

    A remote scene is downloaded once per request, whichever of its tasks comes first and in
    whatever process, to a key that follows from its URL; a local one stays where it is.

    Args:
        url: http(s) URL, absolute path or file:// URL. request_id: owner of the copy.
        manifest: the model whose bands must be there.
        planned_size: width and height that the plan was made for.

    Raises:
        TaskError: ``not_found``, ``forbidden``, ``forbidden_address``, ``outside_roots``,
            ``unreachable`` (retryable), ``too_large``, ``not_a_raster``,
            ``not_georeferenced``, ``too_few_bands`` or ``changed``.
    """
    address = _address(url, settings)
    if isinstance(address, LocalScene):
        brought = _local(address, manifest)
    else:
        brought = _remote(address, settings, storage, request_id, manifest)
    size = (brought.header.width, brought.header.height)
    if planned_size is not None and size != tuple(planned_size):
        raise TaskError(
            "changed",
            f"{brought.url} is {size[0]} x {size[1]} pixels, but was {planned_size[0]} x "
            f"{planned_size[1]} when the request was planned; submit it as a new request.",
        )
    return brought


def verify_unchanged(path: Path, size: int, modified_ns: int | None) -> None:
    """Check that a user's own file is still the one that was checked.

    Raises:
        TaskError: ``changed`` or ``not_found``.
    """
    try:
        now = path.stat()
    except OSError:
        raise TaskError("not_found", f"{path} is no longer there; put it back.") from None
    if now.st_size != size or (modified_ns is not None and now.st_mtime_ns != modified_ns):
        raise TaskError(
            "changed", f"{path} was changed while the request ran; submit it as a new request."
        )


def scene_key(request_id: str, url: str) -> str:
    """Storage key of the request's copy of a remote scene."""
    return request_key(request_id, f"scenes/{_digest(url)}.tif")


def _address(url: str, settings: Settings) -> RemoteScene | LocalScene:
    try:
        return scene_address(url, settings)
    except UnacceptableAddressError as error:
        raise TaskError(error.code, str(error)) from error


def _digest(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()[:24]


def _local(address: LocalScene, manifest: BundleManifest | None) -> BroughtScene:
    path = address.path
    if not path.is_file():
        raise TaskError("not_found", f"{path} is not a file here; check the path.")
    if not os.access(path, os.R_OK):
        raise TaskError("forbidden", f"{path} may not be read; change its permissions.")
    status = path.stat()
    header = check_scene(path, str(address), manifest)
    verify_unchanged(path, status.st_size, status.st_mtime_ns)
    return BroughtScene(
        url=str(address),
        path=path,
        uri=path.as_uri(),
        key=None,
        size=status.st_size,
        sha256=None,
        modified_ns=status.st_mtime_ns,
        header=header,
    )


def _remote(
    address: RemoteScene,
    settings: Settings,
    storage: LocalStorage,
    request_id: str,
    manifest: BundleManifest | None,
) -> BroughtScene:
    key = scene_key(request_id, str(address.url))
    folder = storage.root.parent / "scratch" / f"fetch-{request_id}-{_digest(str(address.url))}"
    stored = _stored(storage, key)
    header: SceneHeader | None = None
    if stored is not None:
        _sweep(folder)
    else:
        with _alone(folder, settings.fetch.total_timeout_s, str(address)):
            stored = _stored(storage, key)  # another process may have been first
            if stored is None:
                part = folder / "scene.tif"
                header = _downloaded(address, part, settings, manifest)
                stored = storage.commit(part, key)
                storage.commit_bytes(_receipt(stored), f"{key}.json")
    path = storage.path(key)
    return BroughtScene(
        url=str(address),
        path=path,
        uri=storage.uri(key),
        key=key,
        size=stored.size,
        sha256=stored.sha256,
        modified_ns=None,
        header=header or check_scene(path, str(address), manifest),
    )


def _downloaded(
    address: RemoteScene, part: Path, settings: Settings, manifest: BundleManifest | None
) -> SceneHeader:
    """Download and check a scene; one that will never do is not kept."""
    try:
        download(address, part, settings.fetch)
        return check_scene(part, str(address), manifest)
    except TaskError as error:
        if not error.retryable:
            part.unlink(missing_ok=True)
        raise
    except OSError as error:
        message = f"{address} cannot be stored here ({error.strerror})."
        raise TaskError("no_space", message, retryable=True) from error


def _receipt(stored: StoredFile) -> bytes:
    return json.dumps({"sha256": stored.sha256, "size": stored.size}).encode()


def _stored(storage: LocalStorage, key: str) -> StoredFile | None:
    """The request's copy, if it is there; its receipt spares reading it through again."""
    if not storage.exists(key):
        return None
    path = storage.path(key)
    size = path.stat().st_size
    if storage.exists(f"{key}.json"):
        receipt = json.loads(storage.read_bytes(f"{key}.json"))
        if receipt["size"] == size:
            return StoredFile(key, size, str(receipt["sha256"]))
    stored = StoredFile(key, size, sha256_of(path))
    storage.commit_bytes(_receipt(stored), f"{key}.json")
    return stored


@contextmanager
def _alone(folder: Path, patience_s: float, shown: str) -> Iterator[None]:
    """Hold ``folder`` against other threads and processes; it is gone when the work succeeded.

    The lock is the kernel's: it falls with the process, and what a killed process downloaded
    stays for the next one to continue.
    """
    deadline = time.monotonic() + patience_s
    while (descriptor := _try_lock(folder)) is None:
        if time.monotonic() > deadline:
            raise TaskError(
                "unreachable", f"{shown} is still being downloaded elsewhere.", retryable=True
            )
        time.sleep(_LOCK_POLL_S)
    try:
        yield
        shutil.rmtree(folder, ignore_errors=True)
    except TaskError as error:
        if not error.retryable:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        os.close(descriptor)


def _sweep(folder: Path) -> None:
    """Remove what a process that was killed right after its commit left."""
    if folder.exists() and (descriptor := _try_lock(folder)) is not None:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _try_lock(folder: Path) -> int | None:
    lock = folder / "lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except (FileNotFoundError, FileExistsError):  # the holder removes the folder just now
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if lock.stat().st_ino == os.fstat(descriptor).st_ino:
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None


def _look(address: RemoteScene, settings: Settings) -> SceneHeader | None:
    """The header from the first bytes, and from those around the TIFF directory if elsewhere."""
    quick = settings.fetch.model_copy(
        update={"timeout_s": min(settings.fetch.timeout_s, _LOOK_TIMEOUT_S)}
    )
    head, total = read_start(address, 0, _HEAD_BYTES, quick)
    directory = _directory_offset(head)
    if directory is None:
        return None
    pieces = [(0, head)]
    if directory + 4096 > len(head) and (total is None or len(head) < total):
        begin = max(len(head), directory - _HEAD_BYTES // 2)
        pieces.append((begin, read_start(address, begin, _HEAD_BYTES, quick)[0]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "head.tif"
        with path.open("wb") as stream:
            for begin, data in pieces:
                stream.seek(begin)
                stream.write(data)
            stream.truncate(max(total or 0, stream.tell()))
        return read_header(path, str(address))


def _directory_offset(head: bytes) -> int | None:
    """Where a TIFF's first directory lies; None where the bytes are no TIFF."""
    orders: dict[bytes, Literal["little", "big"]] = {b"II": "little", b"MM": "big"}
    order = orders.get(head[:2])
    if order is None:
        return None
    version = int.from_bytes(head[2:4], order)
    field = {_TIFF: head[4:8], _BIG_TIFF: head[8:16]}.get(version)
    return None if field is None else int.from_bytes(field, order)
