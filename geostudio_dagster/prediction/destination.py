"""Where the command puts its output: a file here, or an object in a bucket."""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from geostudio_dagster.connectors.bucket import client
from geostudio_dagster.errors import InvalidRequest, TaskError

_S3 = "s3://"
_MEDIA_TYPES = {
    ".tif": "image/tiff; application=geotiff; profile=cloud-optimized",
    ".png": "image/png",
}
_MISSING = ("404", "NoSuchBucket")


class Destination(Protocol):
    """A place for one output. Its text form is how people name it."""

    def check(self) -> None:
        """Refuse what can't be written to, before any work.

        Raises:
            InvalidRequest: it can't be.
        """

    def workplace(self) -> Any:
        """A context manager: a folder for scratch files, and the path to write the output to."""

    def deliver(self, path: Path) -> None:
        """Bring the finished output to its place, if it isn't there yet."""


def destination(text: str, option: str = "output", suffix: str = ".tif") -> Destination:
    """What ``text`` names: a path, or ``s3://bucket/key``.

    Args:
        option: what refusals call it. suffix: of the kind of file that is written there.

    Raises:
        InvalidRequest: another kind of address.
    """
    if text.startswith(_S3):
        bucket, _, key = text.removeprefix(_S3).partition("/")
        if not bucket or not key or key.endswith("/"):
            raise InvalidRequest(
                option, f"{text} names no object", f"write s3://bucket/key{suffix}"
            )
        return BucketDestination(bucket, key, option, suffix)
    if "://" in text:
        raise InvalidRequest(option, f"{text} can't be written", "give a path or s3://bucket/key")
    return LocalDestination(Path(text), option)


@dataclass(frozen=True, slots=True)
class LocalDestination:
    """A file; it appears only when complete."""

    path: Path
    option: str = field(default="output", compare=False)

    def __str__(self) -> str:
        return str(self.path)

    def check(self) -> None:
        """See :class:`Destination`."""
        path = self.path
        if path.is_dir():
            raise InvalidRequest(self.option, f"{path} is a folder", "name a file in it")
        if not path.parent.is_dir():
            raise InvalidRequest(self.option, f"{path.parent} is not a folder", "make it first")
        if path.exists() and not path.is_file():
            # It would be replaced, also if it is /dev/null.
            raise InvalidRequest(self.option, f"{path} is no regular file", "name another file")

    @contextmanager
    def workplace(self) -> Iterator[tuple[Path, Path]]:
        """A folder beside the output, so that the finished file is moved without a copy.

        Those that killed processes left for the same output are removed.
        """
        beside, prefix = self.path.parent, f".{self.path.name}."
        for folder in beside.glob(f"{glob.escape(prefix)}*/"):
            _remove_abandoned(folder)
        with tempfile.TemporaryDirectory(prefix=prefix, dir=beside) as name, _locked(Path(name)):
            yield Path(name), self.path

    def deliver(self, path: Path) -> None:
        """It is there already."""


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Whether the folder is this process's alone in the body; the lock goes as the process does."""
    place = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # another has it, or the file system knows no locks
            yield False
        else:
            yield True
    finally:
        os.close(place)


def _remove_abandoned(folder: Path) -> None:
    """Remove a folder that no living process works in."""
    with suppress(OSError), _locked(folder) as alone:
        # One that is empty may just have been made, and not be locked yet.
        if alone and any(folder.iterdir()):
            shutil.rmtree(folder)


@dataclass(frozen=True, slots=True)
class BucketDestination:
    """An object in a bucket, reached as boto3 finds it (``AWS_PROFILE``, ``AWS_ENDPOINT_URL``).

    The finished file lies in the folder for temporary files until it is uploaded: a COG begins
    with the offsets of all its blocks, which are known only when the last one is compressed. It
    goes up in parts, which become an object together; parts of a failed upload are removed.
    """

    bucket: str
    key: str
    option: str = field(default="output", compare=False)
    suffix: str = field(default=".tif", compare=False)

    def __str__(self) -> str:
        return f"{_S3}{self.bucket}/{self.key}"

    def check(self) -> None:
        """See :class:`Destination`."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            client().head_bucket(Bucket=self.bucket)
        except ClientError as error:
            # Who may write an object may still not be allowed to ask for its bucket.
            if error.response.get("Error", {}).get("Code") in _MISSING:
                raise InvalidRequest(
                    self.option, f"there is no bucket {self.bucket}", "make it first"
                ) from error
        except BotoCoreError as error:
            raise InvalidRequest(
                self.option, f"{self} can't be reached ({error})", "check credentials and region"
            ) from error

    @contextmanager
    def workplace(self) -> Iterator[tuple[Path, Path]]:
        """A folder for temporary files; the output is one of them."""
        with tempfile.TemporaryDirectory(prefix="geostudio-predict.") as folder:
            yield Path(folder), Path(folder) / f"output{self.suffix}"

    def deliver(self, path: Path) -> None:
        """Upload the file.

        Raises:
            TaskError: ``not_uploaded``, retryable; the bucket is as it was before.
        """
        from boto3.exceptions import S3UploadFailedError
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            kind = {"ContentType": _MEDIA_TYPES[self.suffix]}
            client().upload_file(str(path), self.bucket, self.key, ExtraArgs=kind)
        except (S3UploadFailedError, BotoCoreError, ClientError) as error:
            raise TaskError(
                "not_uploaded", f"{self} could not be uploaded ({error}).", retryable=True
            ) from error
