"""What a step did to a task, written while it does it, for the task's user to read.

Inside :func:`recording`, whatever the loggers of this package (and GDAL's warnings) say in the
same context goes to one file per task and step, at a key that follows from their names. Another
attempt is appended under a header of its own. Tracebacks stay in the operator's log.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from geostudio_dagster.connectors.addresses import shown
from geostudio_dagster.storage import LocalStorage, request_key, task_key

MAX_BYTES = 1024**2  # of one file, give or take a few lines
_LONGEST_LINE = 4000
_OWN = "geostudio_dagster"
_LISTENED_TO = (_OWN, "rasterio")

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
# Each begins where no longer match could have begun, so that time stays linear in the text.
_URL = re.compile(r"(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]{0,30}://[^\s'\"<>|\\^`{}]+")
_ENDS_A_SENTENCE = ".,;:!?)]"
_SECRETS = re.compile(
    r"(?i)\b(pak-)[A-Za-z0-9]{8,}"
    r"|\b((?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{8,}"
    r"|((?:password|passwd|secret|token|signature|api[_-]?key|grant)[\"']?\s?[=:]\s?)"
    r"[\"']?[^\s,;&\"']+"
)


def step_log_key(request_id: str, task_id: str, process_id: str) -> str:
    """Storage key of a step's log."""
    return task_key(request_id, task_id, f"{task_id}-{process_id}-stdout.log")


def request_log_key(request_id: str, process_id: str) -> str:
    """Storage key of the log of a step that is done for all tasks of a request at once."""
    return request_key(request_id, f"{request_id}-{process_id}-stdout.log")


def redacted(text: str) -> str:
    """``text`` without user names and queries in URLs, keys, tokens and passwords."""

    def address(match: re.Match[str]) -> str:
        url = match.group().rstrip(_ENDS_A_SENTENCE)
        return shown(url) + match.group()[len(url) :]

    def secret(match: re.Match[str]) -> str:
        return f"{next(filter(None, match.groups()))}***"

    return _SECRETS.sub(secret, _URL.sub(address, text))


@contextmanager
def recording(storage: LocalStorage, key: str, header: str) -> Iterator[None]:
    """Keep what is logged in the body (in its context) in the file of ``key``.

    A log that cannot be written costs nothing but itself.
    """
    _listen()
    log = _StepLog.open(storage.path(key))
    before = _current.set(log)
    try:
        log.line(f"===== {header} =====")
        yield
    finally:
        _current.reset(before)
        log.close()


def write(text: str) -> None:
    """Append what a step's own process printed; does nothing outside of :func:`recording`."""
    log = _current.get()
    if log is not None:
        for line in text.splitlines():
            log.line(line)


class _StepLog:
    """An open log; lines beyond the limit of one attempt are dropped, the last word is not."""

    def __init__(self, path: Path, descriptor: int | None) -> None:
        self._path = path
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._left = MAX_BYTES // 2

    @classmethod
    def open(cls, path: Path) -> _StepLog:
        """Open for appending; of long logs of earlier attempts the end stays."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        try:
            try:
                descriptor = os.open(path, flags, 0o644)
            except FileNotFoundError:
                path.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(path, flags, 0o644)
            if os.fstat(descriptor).st_size > MAX_BYTES // 2:
                _keep_the_end(path)
                os.close(descriptor)
                descriptor = os.open(path, flags, 0o644)
        except OSError:
            logging.getLogger(__name__).warning("the log %s cannot be written", path)
            return cls(path, None)
        return cls(path, descriptor)

    def line(self, text: str, *, last_word: bool = False) -> None:
        """Append one line, at once."""
        if len(text) > _LONGEST_LINE:
            text = f"{text[:_LONGEST_LINE]} [...]"
        plain = _CONTROL.sub("?", _ESCAPES.sub("", redacted(text)))
        data = f"{plain}\n".encode(errors="replace")
        with self._lock:
            if self._descriptor is None:
                return
            if self._left <= 0 and not last_word:
                return
            self._left -= len(data)
            if self._left <= 0 and not last_word:
                data += b"[... this attempt's log is full; further lines are dropped]\n"
            with suppress(OSError):
                os.write(self._descriptor, data)

    def close(self) -> None:
        """Nothing more is written."""
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None


def _keep_the_end(path: Path) -> None:
    with path.open("rb") as stream:
        stream.seek(-MAX_BYTES // 4, os.SEEK_END)
        stream.readline()
        end = stream.read()
    fresh = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
    fresh.write_bytes(b"[... the beginning of this log was dropped]\n" + end)
    fresh.replace(path)


_current: ContextVar[_StepLog | None] = ContextVar("geostudio_step_log", default=None)
_lock = threading.Lock()


class _ToStepLog(logging.Handler):
    """Passes records on to the log of the step in whose context they are made."""

    def emit(self, record: logging.LogRecord) -> None:
        log = _current.get()
        if log is not None:
            try:
                message = record.getMessage()
            except Exception:
                self.handleError(record)
                return
            time = dt.datetime.fromtimestamp(record.created, dt.UTC)
            level = "" if record.levelno <= logging.INFO else f"{record.levelname}: "
            prefix = f"{time:%Y-%m-%dT%H:%M:%S}.{time.microsecond // 1000:03d}Z {level}"
            last_word = record.levelno >= logging.WARNING or getattr(record, "last_word", False)
            first, *more = message.splitlines() or [""]
            log.line(prefix + first, last_word=bool(last_word))
            for line in more:
                log.line(f"    {line}")
        # A logger with a handler no longer reaches Python's handler of last resort, which is
        # what shows the operator warnings where nothing is configured.
        last_resort = logging.lastResort
        unheard = record.name.startswith(_OWN) and not logging.getLogger().handlers
        if unheard and last_resort is not None and record.levelno >= last_resort.level:
            last_resort.handle(record)


def _listen() -> None:
    """Attach the handler, once per process."""
    with _lock:
        for name in _LISTENED_TO:
            logger = logging.getLogger(name)
            if not any(isinstance(handler, _ToStepLog) for handler in logger.handlers):
                logger.addHandler(_ToStepLog())
        own = logging.getLogger(_OWN)
        if own.level == logging.NOTSET:
            own.setLevel(logging.INFO)
