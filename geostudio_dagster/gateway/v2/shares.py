"""Files to hand on: a link to upload one, and a link to download it, each signed and expiring.

What users upload is only ever sent back as bytes to be saved, never as something to be shown.
"""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated
from urllib.parse import quote
from uuid import UUID, uuid4

from anyio import to_thread
from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import FileResponse
from pydantic import AfterValidator, BaseModel
from starlette.requests import ClientDisconnect

from geostudio_dagster.catalog.shares import ShareRecord
from geostudio_dagster.errors import Conflict, NotFound
from geostudio_dagster.gateway.grants import Guest, Visitor
from geostudio_dagster.gateway.place import GatewayPlace, Place
from geostudio_dagster.gateway.principal import Caller
from geostudio_dagster.gateway.problems import responses
from geostudio_dagster.gateway.times import ApiTime
from geostudio_dagster.signing import GRANT
from geostudio_dagster.storage import sha256_of

router = APIRouter(prefix="/file-share", tags=["files"])
open_router = APIRouter(prefix="/file-share", tags=["files"], responses=responses(401, 403, 404))

MESSAGE = (
    "Use upload_url to add data to a temporary storage. download_url to share data after upload."
)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. -]*\.[A-Za-z0-9]+")
_BINARY = "application/octet-stream"
_PIECE = 1024**2  # bytes handed to the disk at a time


def _plain_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(
            "is not a plain file name: use letters, digits, hyphens, dots, underscores and "
            "spaces, and end with an extension"
        )
    return name


ObjectName = Annotated[
    str,
    Query(min_length=6, max_length=60, description="Name of the file, with its extension."),
    AfterValidator(_plain_name),
]


class FilesShareOut(BaseModel):
    """Where to PUT a file, and where it is found then."""

    upload_url: str
    download_url: str
    message: str = MESSAGE
    expires_at: ApiTime


@router.get("", operation_id="get_fileshare_links", responses=responses(409))
def links(object_name: ObjectName, request: Request, caller: Caller, place: Place) -> FilesShareOut:
    """A place for a file, nobody else's, whatever others call theirs."""
    hours = timedelta(hours=place.settings.gateway.share_hours)
    file_name = object_name.replace(" ", "_")
    share = place.catalog.create_share(caller.email, object_name, file_name, hours, _BINARY)
    return FilesShareOut(
        upload_url=_address(request, place, share, "upload"),
        download_url=_address(request, place, share, "download"),
        expires_at=share.expires_at,
    )


@open_router.put("/{share_id}/{name}", operation_id="upload_shared_file", responses=responses(409))
async def upload(
    share_id: UUID, name: str, request: Request, guest: Guest, place: Place
) -> dict[str, str | int]:
    """The file itself, as the body. The same bytes again change nothing; others are refused."""
    share = await to_thread.run_sync(_found, place, guest, str(share_id), name, "upload")
    scratch = place.storage.scratch_file(f"upload-{share.id}-{uuid4().hex}")
    try:
        size = await _receive(request, scratch)
        await to_thread.run_sync(_take, place, share, scratch, size)
    except ClientDisconnect:
        raise HTTPException(400, "The upload ended before the whole file was there.") from None
    finally:
        scratch.unlink(missing_ok=True)
    return {"name": share.name, "size": size}


@open_router.api_route(
    "/{share_id}/{name}", methods=["GET", "HEAD"], operation_id="download_shared_file"
)
def download(share_id: UUID, name: str, guest: Guest, place: Place) -> FileResponse:
    """The file, or ranges of it."""
    share = _found(place, guest, str(share_id), name, "download")
    path = place.storage.path(share.key)
    if share.uploaded_at is None or not path.is_file():
        raise NotFound(f"Nothing was uploaded as {share.name} yet.")
    return FileResponse(
        path,
        media_type=_BINARY,
        filename=share.name,
        content_disposition_type="attachment",
        headers={
            "Cache-Control": "private, no-cache",
            "Content-Security-Policy": "sandbox; default-src 'none'",
        },
    )


def _address(request: Request, place: GatewayPlace, share: ShareRecord, use: str) -> str:
    base = str(request.base_url).rstrip("/")
    hours = timedelta(hours=place.settings.gateway.share_hours)
    token = place.signer.sign(f"{use}:{share.id}", hours)
    file_name = quote(share.key.rsplit("/", 1)[1])
    return f"{base}/v2/file-share/{share.id}/{file_name}?{GRANT}={token}"


def _found(place: GatewayPlace, guest: Visitor, share_id: str, name: str, use: str) -> ShareRecord:
    """The share that a link is for, or one of the caller's own.

    Raises:
        HTTPException: 403, the link is not for that.
        NotFound: there is none, or it is somebody else's.
    """
    guest.may(f"{use}:{share_id}")
    share = place.catalog.share(share_id)
    caller = guest.principal
    foreign = caller is not None and not caller.admin and share.owner != caller.email
    if foreign or share.key.rsplit("/", 1)[1] != name:
        raise NotFound("There is no such shared file.")
    return share


async def _receive(request: Request, scratch: Path) -> int:
    """Write the body to the disk as it comes; its size in bytes."""
    size, piece = 0, bytearray()
    with await to_thread.run_sync(scratch.open, "wb") as stream:
        async for chunk in request.stream():
            piece += chunk
            if len(piece) >= _PIECE:
                size += await to_thread.run_sync(stream.write, bytes(piece))
                piece.clear()
        size += await to_thread.run_sync(stream.write, bytes(piece))
    return size


def _take(place: GatewayPlace, share: ShareRecord, scratch: Path, size: int) -> None:
    """Give the file its place, unless another is there."""
    if not place.storage.commit_once(scratch, share.key):
        there = place.storage.path(share.key)
        same = there.stat().st_size == size and sha256_of(there) == sha256_of(scratch)
        if not same:
            raise Conflict(
                f"{share.name} was uploaded here before, with other content; ask for new links."
            )
    days = timedelta(days=place.settings.housekeeping.share_days)
    place.catalog.finish_upload(share.id, size, _BINARY, days)
