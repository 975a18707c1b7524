"""What every exchange over HTTP shares: classes of failure, retries, headers."""

from __future__ import annotations

import datetime as dt
import logging
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime

import httpcore
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt

from geostudio_dagster.errors import TaskError

log = logging.getLogger(__name__)

TRANSIENT_STATUS = (408, 425, 429, 500, 502, 503, 504)
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 60.0


class TransientError(TaskError):
    """A failure worth another try now; ``after`` is the pause that the server asked for."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__("unreachable", message, retryable=True)
        self.after = after


def retrying(attempts: int, deadline: float) -> Retrying:
    """Tries what it is called with again after a :class:`TransientError`.

    At most ``attempts`` times in all, with the pause that the server asked for, else a growing
    one, and not beyond ``deadline`` (monotonic). The last error is raised as it is.
    """
    return Retrying(
        stop=stop_after_attempt(attempts),
        retry=retry_if_exception(lambda error: _worth_retrying(error, deadline)),
        wait=_pause,
        before_sleep=_tell_of_the_pause,
        reraise=True,
    )


@contextmanager
def network_errors(what: object) -> Iterator[None]:
    """Failures of the network as errors that name ``what``; most are transient.

    Raises:
        TaskError: ``unreachable``.
    """
    try:
        yield
    except httpcore.TimeoutException as error:
        raise TransientError(f"{what} did not answer in time.") from error
    except (httpcore.NetworkError, httpcore.ProtocolError) as error:
        if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in _causes(error)):
            raise TaskError(
                "unreachable", f"{what} has a certificate that is not trusted ({error})."
            ) from error
        raise TransientError(
            f"{what} cannot be read ({str(error) or type(error).__name__})."
        ) from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def header(response: httpcore.Response, name: bytes) -> str:
    """A header's value by its lower-case name, empty where there is none."""
    for key, value in response.headers:
        if key.lower() == name:
            return value.decode("latin-1").strip()
    return ""


def content_length(response: httpcore.Response) -> int | None:
    """The size of the body in bytes, if told."""
    text = header(response, b"content-length")
    return int(text) if text.isdecimal() else None


def retry_after(response: httpcore.Response) -> float | None:
    """Seconds that the server wants to be left alone for, if it says so, as number or date."""
    text = header(response, b"retry-after")
    if text.isdecimal():
        return float(text)
    try:
        when = parsedate_to_datetime(text)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=dt.UTC)
    return max(0.0, (when - dt.datetime.now(dt.UTC)).total_seconds())


def _worth_retrying(error: BaseException, deadline: float) -> bool:
    if not isinstance(error, TransientError) or (error.after or 0) > _LONGEST_WAIT_S:
        return False
    return time.monotonic() + (error.after or 0) < deadline


def _tell_of_the_pause(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    log.info("try %d: %s Next try in %.1f s.", state.attempt_number, error, _pause(state))


def _pause(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, TransientError) and error.after is not None:
        return error.after
    return min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** (state.attempt_number - 1))
