"""The files that a prediction at a terminal reads and writes: none of them twice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from geostudio_dagster.errors import InvalidRequest

_READ = {"input": "an input", "model": "a file of the model"}


class Named(NamedTuple):
    """A file as it was named: by which option, and its path or address."""

    option: str
    text: str


def check_apart(written: Sequence[Named], read: Sequence[Named]) -> None:
    """Make sure that what is written replaces nothing that is read, nor each other.

    Raises:
        InvalidRequest: a file is named twice, or a name is none that GDAL can take.
    """
    for one in (*read, *written):
        try:
            one.text.encode()
        except UnicodeEncodeError as error:
            name = ascii(one.text)
            raise InvalidRequest(one.option, f"{name} is not UTF-8", "rename it") from error
    for number, one in enumerate(written):
        for other in (*read, *written[:number]):
            if _same(one.text, other.text):
                what = _READ.get(other.option, f"the {other.option}")
                raise InvalidRequest(one.option, f"{one.text} is {what}", "name another file")


def _same(one: str, other: str) -> bool:
    if "://" in one or "://" in other:
        return one == other
    first, second = Path(one), Path(other)
    if first.exists() and second.exists():
        return first.samefile(second)
    return first.resolve() == second.resolve()
