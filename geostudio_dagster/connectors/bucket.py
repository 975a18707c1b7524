"""A scene in a bucket read where it is, with the credentials that boto3 finds."""

from __future__ import annotations

import os
import time
from http import HTTPStatus
from typing import Any

from geostudio_dagster.connectors.exchange import TransientError, retrying
from geostudio_dagster.connectors.ranged import CHUNK, RangedFile, safe_name
from geostudio_dagster.errors import TaskError

_ATTEMPTS = 4
_PATIENCE_S = 120.0
_REFUSALS = {
    HTTPStatus.NOT_FOUND: ("not_found", "does not exist"),
    HTTPStatus.FORBIDDEN: ("forbidden", "may not be read with these credentials"),
    HTTPStatus.UNAUTHORIZED: ("forbidden", "may not be read with these credentials"),
}


class BucketFile(RangedFile):
    """An object in a bucket; ``AWS_PROFILE``, ``AWS_ENDPOINT_URL`` and the like count.

    So do GDAL's ``AWS_NO_SIGN_REQUEST=YES``, for public buckets, and ``AWS_S3_ENDPOINT``.

    Raises:
        TaskError: ``not_found``, ``forbidden``, or ``unreachable``, which is retryable.
    """

    def __init__(self, bucket: str, key: str) -> None:
        from botocore.exceptions import BotoCoreError

        super().__init__(safe_name(key))
        self._place = {"Bucket": bucket, "Key": key}
        self._version = ""
        try:
            try:
                self._client = client()
            except BotoCoreError as error:
                raise self._not_allowed(error) from error
            self._cache[0] = self._patiently(0, CHUNK)
        except BaseException:
            self.close()
            raise

    def __str__(self) -> str:
        return f"s3://{self._place['Bucket']}/{self._place['Key']}"

    def _patiently(self, offset: int, length: int) -> bytes:
        again = retrying(_ATTEMPTS, time.monotonic() + _PATIENCE_S)
        return bytes(again(self._fetch, offset, length))

    def _fetch(self, offset: int, length: int) -> bytes:
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            NoCredentialsError,
            PartialCredentialsError,
        )

        same = {"IfMatch": self._version} if self._version else {}
        try:
            answer = self._client.get_object(
                **self._place, **same, Range=f"bytes={offset}-{offset + length - 1}"
            )
            self._note(answer)
            data = bytes(answer["Body"].read())
        except ClientError as error:
            raise self._refusal(error) from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise self._not_allowed(error) from error
        except (BotoCoreError, OSError) as error:
            raise TransientError(f"{self} can't be reached ({error}).") from error
        if len(data) != min(length, self.size - offset):
            raise TransientError(f"{self} sent {len(data)} of {length} bytes.")
        return data

    def _note(self, answer: dict[str, Any]) -> None:
        """Size and version of the first answer, or make sure that they are still the same."""
        _, _, size = answer.get("ContentRange", "").rpartition("/")
        found = int(size) if size.isdigit() else -1, answer.get("ETag", "")
        if not self._version:
            self.size, self._version = found
            if self.size < 0 or not self._version:
                raise TaskError("unreachable", f"{self} is not served as S3 serves objects.")
        elif found != (self.size, self._version):
            raise self._changed()

    def _refusal(self, error: Any) -> TaskError:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if status == HTTPStatus.PRECONDITION_FAILED:
            return self._changed()
        if status in _REFUSALS:
            code, words = _REFUSALS[status]
            return TaskError(code, f"{self} {words}.")
        if status in {HTTPStatus.BAD_REQUEST, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE}:
            return TaskError("unreachable", f"{self} can't be read ({error}).")
        return TransientError(f"{self} can't be read ({error}).")

    def _not_allowed(self, error: Exception) -> TaskError:
        problem = str(error).rstrip(".")
        return TaskError(
            "forbidden",
            f"{self} can't be read ({problem}); check credentials and profile, or set "
            "AWS_NO_SIGN_REQUEST=YES for a public bucket.",
        )

    def _changed(self) -> TaskError:
        return TaskError(
            "input_changed",
            f"{self} changed while it was read; try again when it is complete.",
            retryable=True,
        )


def client() -> Any:
    """What talks to S3: as boto3 is told to, and as GDAL is where boto3 is told nothing."""
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    unsigned = os.environ.get("AWS_NO_SIGN_REQUEST", "").upper() in {"YES", "TRUE", "1"}
    choices: dict[str, Any] = {"signature_version": UNSIGNED} if unsigned else {}
    host = os.environ.get("AWS_S3_ENDPOINT")
    told = "AWS_ENDPOINT_URL" in os.environ or "AWS_ENDPOINT_URL_S3" in os.environ
    if not host or told:
        return boto3.client("s3", config=Config(**choices))
    plain = os.environ.get("AWS_HTTPS", "").upper() in {"NO", "FALSE", "0"}
    if os.environ.get("AWS_VIRTUAL_HOSTING", "").upper() in {"NO", "FALSE", "0"}:
        choices["s3"] = {"addressing_style": "path"}
    address = host if "://" in host else f"{'http' if plain else 'https'}://{host}"
    return boto3.client("s3", endpoint_url=address, config=Config(**choices))
