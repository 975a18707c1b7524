"""What an attack is, and what every one of them begins with."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PRELUDE = '''
import ctypes, errno, json, os, signal, socket, subprocess, sys, threading, time
INPUT, OUTPUT, P = sys.argv[1], os.path.dirname(sys.argv[2]), json.loads(sys.argv[3])
libc = ctypes.CDLL(None, use_errno=True)

def attempt(label, what):
    """Says GOT when something that must not work did."""
    try:
        got = what()
    except (OSError, ValueError, ImportError) as error:
        print(label, "blocked:", type(error).__name__, flush=True)
    else:
        print(label, "GOT", repr(got)[:2000], flush=True)

def call(number, *arguments):
    """A system call by its number; an error is an OSError."""
    if libc.syscall(number, *arguments) == -1:
        raise OSError(ctypes.get_errno(), "refused")

def out(name):
    return os.path.join(OUTPUT, name)

def tiff(name, size=16, crs="EPSG:32633", **more):
    import rasterio
    from rasterio.transform import from_origin
    place = {"crs": crs, "transform": from_origin(500000, 5300000, 10, 10)} if crs else {}
    with rasterio.open(out(name), "w", driver="GTiff", width=size, height=size, count=1,
                       dtype="uint8", **place, **more) as file:
        yield file

def main():
'''
END = '\n\nif __name__ == "__main__":\n    main()\n'


@dataclass(frozen=True)
class Attack:
    """A script and what must become of it.

    Attributes:
        body: what its main does, after ``PRELUDE``.
        reasons: how the run may end.
        says: must be in what the user reads: the message, or else the log.
        collected: names of the files that are taken; a string is what their refusal says.
        limits: instead of the corpus' own.
        may_get: what it tries and may succeed in, since it is its own.
        machine: the only kind of processor whose numbers of system calls it knows.
    """

    name: str
    body: str
    reasons: tuple[str, ...] = ("ok",)
    says: tuple[str, ...] = ()
    collected: tuple[str, ...] | str = ()
    limits: Mapping[str, Any] = field(default_factory=dict)
    may_get: tuple[str, ...] = ()
    machine: str = ""

    @property
    def code(self) -> str:
        return PRELUDE + textwrap.indent(textwrap.dedent(self.body).strip(), "    ") + END
