"""Request files dropped in a folder: each is accepted or rejected, and never taken twice."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

from geostudio_dagster.errors import Conflict, InvalidRequest
from geostudio_dagster.installation import Installation
from geostudio_dagster.planning.admission import admit
from geostudio_dagster.planning.request import RequestSpec, parse_request_json

log = logging.getLogger(__name__)

# A file that does not parse may still be being written; give its writer this long.
_SETTLE_S = 5.0


@dataclass(frozen=True, slots=True)
class InboxOutcome:
    """What became of one file: the verdict is the request's id, or the reason of refusal."""

    file: str
    accepted: bool
    verdict: str


def take_all(installation: Installation) -> list[InboxOutcome]:
    """Admit every ``*.json`` in the inbox, oldest first; files still being written wait.

    So does one that cannot be dealt with now (the catalog does not answer); the others do not
    wait for it.
    """
    folder = installation.settings.inbox
    for name in ("accepted", "rejected"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    files = [path for path in folder.glob("*.json") if path.is_symlink() or path.is_file()]
    outcomes = []
    for path in sorted(files, key=_age):
        try:
            outcome = _take(installation, path)
        except Exception:
            log.exception("%s cannot be taken now", path)
            continue
        if outcome is not None:
            outcomes.append(outcome)
    return outcomes


def _age(path: Path) -> tuple[int, str]:
    try:
        return path.lstat().st_mtime_ns, path.name
    except FileNotFoundError:  # taken away again
        return 0, path.name


def _take(installation: Installation, path: Path) -> InboxOutcome | None:
    try:
        request = admit(
            _read(installation, path), installation.catalog, installation.settings, owner="inbox"
        )
    except (InvalidRequest, Conflict) as error:
        if _is_fresh(path) and _is_truncated(path):
            return None
        _move(path, "rejected", "reason", str(error))
        return InboxOutcome(path.name, accepted=False, verdict=str(error))
    _move(path, "accepted", "id", request.id)
    return InboxOutcome(path.name, accepted=True, verdict=request.id)


def _read(installation: Installation, path: Path) -> RequestSpec:
    if path.is_symlink():
        raise InvalidRequest("request", "is a link", "put the file itself here")
    limit = installation.settings.max_request_bytes
    status = path.stat()
    if status.st_size > limit:
        raise InvalidRequest(
            "request", f"is {status.st_size} bytes long", f"stay under {limit} bytes"
        )
    try:
        text = path.read_bytes()
    except PermissionError:
        raise InvalidRequest("request", "may not be read", "change its permissions") from None
    spec = parse_request_json(text)
    if spec.id is not None:
        return spec
    # The same file seen again after a crash must be the same request.
    identity = f"{path.absolute()}:{status.st_mtime_ns}:{sha256(text).hexdigest()}"
    return spec.model_copy(update={"id": uuid5(NAMESPACE_URL, identity)})


def _is_fresh(path: Path) -> bool:
    """Whether it may still be being written; what comes from the far future is not."""
    return not path.is_symlink() and abs(time.time() - path.stat().st_mtime) < _SETTLE_S


def _is_truncated(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return True
    except (OSError, RecursionError):
        return False
    return False


def _move(path: Path, verdict: str, kind: str, note: str) -> None:
    """Put the file into the verdict's folder, with a note beside it.

    The note comes first: whoever sees the file there finds it explained, and a file whose move
    was interrupted is simply taken again.
    """
    folder = path.parent / verdict
    target = folder / path.name
    serial = 1
    while target.exists():
        target = folder / f"{path.stem}-{serial}{path.suffix}"
        serial += 1
    target.with_suffix(f".{kind}.txt").write_text(f"{note}\n", "utf-8")
    path.rename(target)
