"""Who did what: lines of JSON in a file for each day (UTC), below ``audit`` in the data folder."""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

_NAME = re.compile(r"^audit-(\d{4}-\d{2}-\d{2})\.jsonl$")


class AuditLog:
    """The files in ``folder``; several processes may write to them at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._open: tuple[str, int] | None = None

    def write(self, moment: dt.datetime, **entry: Any) -> None:
        """Add a line; a call whose line cannot be written is answered all the same."""
        moment = moment.astimezone(dt.UTC)
        line = json.dumps({"at": moment.isoformat(timespec="microseconds"), **entry}) + "\n"
        try:
            with self._lock:
                os.write(self._file(moment.date().isoformat()), line.encode())
        except OSError:
            log.exception("an entry of the audit log could not be written")

    def close(self) -> None:
        """Close the day's file."""
        with self._lock:
            if self._open is not None:
                os.close(self._open[1])
            self._open = None

    def _file(self, day: str) -> int:
        if self._open is not None and self._open[0] == day:
            return self._open[1]
        if self._open is not None:
            os.close(self._open[1])
            self._open = None
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Appending, each line by one call: lines of several processes stay whole.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self._folder / f"audit-{day}.jsonl", flags, 0o600)
        self._open = day, descriptor
        return descriptor


def remove_before(folder: Path, day: dt.date) -> Iterator[str]:
    """Remove the files of earlier days; the name of each."""
    for path in sorted(folder.glob("audit-*.jsonl")):
        found = _NAME.match(path.name)
        if found and dt.date.fromisoformat(found[1]) < day:
            path.unlink(missing_ok=True)
            yield path.name
