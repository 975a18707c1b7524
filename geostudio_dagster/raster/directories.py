"""A TIFF's directories: whether all that they point to lies within the file.

Scales, names and no data are often the last that was written. Where a file was cut off there,
libtiff leaves them out, with no more than a warning: numbers would come out wrong.

The layout is that of TIFF 6.0, section 2, and of BigTIFF.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple, Protocol

_MOST_DIRECTORIES = 256  # overviews and masks
_MOST_ENTRIES = 4096
# Bytes of a value, by its type; others than these are of nobody's concern.
_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_BYTES |= {16: 8, 17: 8, 18: 8}


class Content(Protocol):
    """A file's bytes, at any place of it, and how many there are."""

    @property
    def size(self) -> int:
        """Bytes of the file."""

    def read_at(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``offset``; empty where there are none."""


class CutShortError(OSError):
    """The file ends before what it says that it has."""

    def __init__(self) -> None:
        super().__init__("it is cut short, values of its tags are missing")


class _Layout(NamedTuple):
    """How the numbers of a kind of TIFF are written, for :mod:`struct`."""

    pointer: str  # to a directory
    length: str  # entries in a directory
    entry: str  # tag, type, count of values, their place
    inline: int  # bytes of values that stand in the entry itself


_LAYOUTS = {
    b"II*\0": _Layout("<I", "<H", "<HHII", 4),
    b"MM\0*": _Layout(">I", ">H", ">HHII", 4),
    b"II+\0": _Layout("<Q", "<Q", "<HHQQ", 8),
    b"MM\0+": _Layout(">Q", ">Q", ">HHQQ", 8),
}


def check_directories(content: Content) -> None:
    """Make sure that all values that the directories of a TIFF name are in the file.

    Raises:
        CutShortError: some are not.
    """
    layout = _LAYOUTS.get(content.read_at(0, 4))
    if layout is None:
        return
    # The header ends with the place of the first one, of as many bytes as fit into an entry.
    place = _number(content, layout.pointer, layout.inline)
    seen: set[int] = set()
    while place and place not in seen and len(seen) < _MOST_DIRECTORIES:
        seen.add(place)
        end = place
        for kind, count, at in _entries(content, layout, place):
            size = _BYTES.get(kind, 0) * count
            if size > layout.inline and at + size > content.size:
                raise CutShortError
            end += struct.calcsize(layout.entry)
        place = _number(content, layout.pointer, end + struct.calcsize(layout.length))


def _entries(content: Content, layout: _Layout, place: int) -> Iterator[tuple[int, int, int]]:
    """Type, count and place of the values of each entry of a directory."""
    count = min(_number(content, layout.length, place), _MOST_ENTRIES)
    length = count * struct.calcsize(layout.entry)
    data = content.read_at(place + struct.calcsize(layout.length), length)
    if len(data) < length:
        raise CutShortError
    for _, kind, number, at in struct.iter_unpack(layout.entry, data):
        yield kind, number, at


def _number(content: Content, form: str, place: int) -> int:
    data = content.read_at(place, struct.calcsize(form))
    if len(data) < struct.calcsize(form):
        raise CutShortError
    (number,) = struct.unpack(form, data)
    return int(number)
