"""Waiting for other processes, on a machine that may be busy."""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx

PATIENCE_S = 600  # with a busy machine


def until(condition: Callable[[], bool], what: str, seconds: float = PATIENCE_S) -> None:
    """Wait for a condition on other processes; fails with what it waited for."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{seconds} s passed before {what}"
        time.sleep(0.1)


def get(url: str) -> httpx.Response:
    return httpx.get(url, timeout=PATIENCE_S)
