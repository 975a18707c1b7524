"""Ports of loopback that nobody else gets before whoever is to have them."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SHARES = 8  # test processes that may ask at the same time without meeting
_given: set[int] = set()


@contextmanager
def held_port() -> Iterator[socket.socket]:
    """A port where nobody listens, nor will: calls to it are refused, until its holder listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held


def port_of(held: socket.socket) -> int:
    """The number of a socket's port."""
    return int(held.getsockname()[1])


def port_for_a_process() -> int:
    """The number of a free port, for a process that is told on which port to listen.

    It lies below those that the kernel hands out by itself, and in a share of this test process's
    own: until the process listens, no connection, no other server and no other test gets it.
    """
    handed_out = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    own = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _SHARES
    numbers = [n for n in range(10_000, max(handed_out, 20_000)) if n % _SHARES == own]
    random.shuffle(numbers)
    for number in numbers:
        if number not in _given and _is_free(number):
            _given.add(number)
            return number
    raise AssertionError("there is no free port below those that the kernel hands out")


def _is_free(number: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", number))
        except OSError:
            return False
    return True
