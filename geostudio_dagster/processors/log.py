"""What a script prints, kept within bounds and safe to show."""

from __future__ import annotations

import unicodedata

_SHOWN = {"\n", "\t"}


class BoundedLog:
    """The beginning and the end of a stream of bytes; what lies between is counted and dropped."""

    def __init__(self, size: int) -> None:
        self._head_size = size // 4
        self._tail_size = size - self._head_size
        self._head = bytearray()
        self._tail = bytearray()
        self.total = 0

    def add(self, chunk: bytes) -> None:
        """Take the next bytes."""
        self.total += len(chunk)
        room = self._head_size - len(self._head)
        if room > 0:
            self._head += chunk[:room]
            chunk = chunk[room:]
        self._tail += chunk
        if len(self._tail) > 2 * self._tail_size:
            del self._tail[: -self._tail_size]

    @property
    def is_whole(self) -> bool:
        """Whether nothing was dropped."""
        return self.total <= self._head_size + self._tail_size

    def text(self) -> str:
        """Readable text: UTF-8 where it is, control characters escaped."""
        tail = bytes(self._tail[-self._tail_size :])
        if self.is_whole:
            return readable(bytes(self._head) + tail)
        dropped = self.total - len(self._head) - len(tail)
        return (
            f"{readable(bytes(self._head))}\n[... {dropped} bytes left out ...]\n{readable(tail)}"
        )


def readable(data: bytes) -> str:
    """Text of untrusted bytes; no character of it moves a cursor or turns the direction."""
    text = data.decode("utf-8", errors="replace").replace("\r\n", "\n")
    if text.isprintable():
        return text
    return "".join(map(_safe, text))


def _safe(character: str) -> str:
    if character in _SHOWN or character.isprintable():
        return character
    if unicodedata.category(character) == "Zs":
        return " "
    return (
        character.encode("ascii", errors="backslashreplace").decode()
        if (
            ord(character) > 0x7F  # noqa: PLR2004 - the last of ASCII
        )
        else f"\\x{ord(character):02x}"
    )
