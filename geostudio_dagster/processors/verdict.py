"""Why a run ended as it did, in one sentence for its user."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from geostudio_dagster.processors.log import BoundedLog, readable
from geostudio_dagster.processors.watch import Breach, Watch, megabytes
from geostudio_dagster.settings import ScriptLimits

Reason = Literal[
    "ok", "failed", "reported", "timeout", "cpu", "memory", "disk", "processes", "signal"
]
_SIGNALS = 128
_MESSAGE_CHARACTERS = 1500
_MESSAGE_LINES = 6
_OUT_OF_MEMORY = re.compile(r"([\w.]+\.)?_?(Array)?MemoryError\b")


@dataclass(slots=True)
class Ending:
    """What was seen of a run; exit_code None means that the sandbox never started it."""

    log: BoundedLog
    printed: BoundedLog
    errors: BoundedLog
    watch: Watch
    exit_code: int | None = None
    breach: Breach | None = None


def judged(ending: Ending, printed: Mapping[str, Any], limits: ScriptLimits) -> tuple[Reason, str]:
    """The reason, and the sentence with the script's own last lines; empty when all is well."""
    said = (ending.errors.text(), ending.printed.text())
    return verdict(ending.exit_code, ending.breach, said, printed, limits)


def verdict(
    exit_code: int | None,
    breach: Breach | None,
    said: Sequence[str],
    printed: Mapping[str, Any],
    limits: ScriptLimits,
) -> tuple[Reason, str]:
    """The same, of what was seen elsewhere; ``said`` begins with where it wrote its errors."""
    last = next(filter(None, map(last_words, said)), "")
    if breach:
        return breach.reason, _sentence(f"{breach.clause} and was ended", last)
    if str(printed.get("status", "")).lower() in {"error", "failed", "failure"}:
        own = readable(str(printed.get("message", "")).encode("utf-8", "replace"))
        return "reported", _sentence("reported an error", last_words(own) or last)
    if not exit_code:
        return "ok", ""
    reason, clause = _failure(exit_code, said[0], limits)
    return reason, _sentence(clause, last)


def _failure(code: int, errors: str, limits: ScriptLimits) -> tuple[Reason, str]:
    if code == _SIGNALS + signal.SIGXCPU:
        return "cpu", f"{Breach.of('cpu', limits).clause} and was ended"
    name = _signal(code - _SIGNALS)
    if name is not None:
        return "signal", f"was ended by {name}"
    lines = [line for line in errors.splitlines() if line.strip()]
    if lines and _OUT_OF_MEMORY.match(lines[-1]):
        return "memory", f"wanted more than {megabytes(limits.memory_bytes)} of memory"
    return "failed", f"ended with exit code {code}"


def _sentence(clause: str, last: str) -> str:
    return f"The processor {clause}. It said last: {last}" if last else f"The processor {clause}."


def _signal(number: int) -> str | None:
    """The signal's name; None where the number is none, and so a script's own exit code."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return None


def last_words(text: str) -> str:
    """The last lines of ``text`` that say something, in one line."""
    lines = [line.strip() for line in text[-4 * _MESSAGE_CHARACTERS :].splitlines()]
    return " / ".join(list(filter(None, lines))[-_MESSAGE_LINES:])[-_MESSAGE_CHARACTERS:]
