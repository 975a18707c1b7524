"""Parts of a short text that may be growing, as HTTP Range asks for them."""

from __future__ import annotations

import re

from fastapi import Request
from fastapi.responses import Response

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def ranged(data: bytes, request: Request, media_type: str) -> Response:
    """``data``, or the one range of it that the request asks for (206; 416 beyond the end).

    Several ranges at once, or what is no range of bytes, gets the whole, as RFC 9110 allows.
    """
    headers = {
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-store",
        "Content-Disposition": "inline",
    }
    wanted = _RANGE.fullmatch(request.headers.get("range", "").replace(" ", ""))
    if wanted is None or wanted.groups() == ("", ""):
        return Response(data, media_type=media_type, headers=headers)
    begin, end = _bounds(wanted[1], wanted[2], len(data))
    if begin >= len(data) or end < begin:
        headers["Content-Range"] = f"bytes */{len(data)}"
        return Response(status_code=416, headers=headers, media_type=media_type)
    headers["Content-Range"] = f"bytes {begin}-{end}/{len(data)}"
    return Response(data[begin : end + 1], status_code=206, media_type=media_type, headers=headers)


def last_lines(data: bytes, count: int) -> bytes:
    """The last ``count`` lines."""
    lines = data.splitlines(keepends=True)
    return b"".join(lines[-count:])


def _bounds(first: str, last: str, size: int) -> tuple[int, int]:
    if not first:  # the last so many bytes
        return max(0, size - _bounded(last)), size - 1 if _bounded(last) else -1
    return _bounded(first), min(_bounded(last) if last else size - 1, size - 1)


def _bounded(digits: str) -> int:
    return int(digits[:20])  # as good as endless, and no work to read
