"""A process whose main thread hears of no signal, and may or may not end when it is cancelled."""

from __future__ import annotations

import ctypes
import signal
import sys
import time

from geostudio_dagster.installation import Installation
from geostudio_dagster.pipeline.cancelling import ended_if_cancelled


def main(request_id: str, kind: str) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    with Installation.open() as installation, ended_if_cancelled(installation, request_id):
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        if kind == "native":
            ctypes.CDLL(None).pause()  # no instruction of Python's follows
        while not installation.catalog.is_cancelled(request_id):
            time.sleep(0.01)


if __name__ == "__main__":
    main(*sys.argv[1:])
