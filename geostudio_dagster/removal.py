"""Removing folders that a hostile program filled: deep beyond any path, closed to their owner."""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path

_OWNERS = 0o700
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def remove_tree(folder: Path) -> None:
    """Remove ``folder`` and all below it, links as links; what cannot be removed stays.

    The tree is flattened while it goes, so that neither its depth nor the length of its paths
    matters. Nobody may be writing into it any more.
    """
    with suppress(OSError):
        top = _opened(str(folder), None)
        try:
            _empty(top)
        finally:
            os.close(top)
        folder.rmdir()


def _empty(top: int) -> None:
    mark = uuid.uuid4().hex
    raised = 0
    while names := os.listdir(top):
        gone = 0
        for name in names:
            with suppress(OSError):
                if not _unlinked(name, top):
                    raised = _raise_children(name, top, mark, raised)
                    os.rmdir(name, dir_fd=top)
                gone += 1
        if not gone:
            return


def _raise_children(name: str, top: int, mark: str, raised: int) -> int:
    """Unlink the folder's files and move its folders up into ``top``; how many were moved yet."""
    child = _opened(name, top)
    try:
        for entry in os.listdir(child):  # noqa: PTH208 - a descriptor
            if not _unlinked(entry, child):
                os.close(_opened(entry, child))  # a closed folder cannot be moved
                os.rename(entry, f"{mark}-{raised}", src_dir_fd=child, dst_dir_fd=top)
                raised += 1
    finally:
        os.close(child)
    return raised


def _unlinked(name: str, parent: int) -> bool:
    """Whether it was no folder, and is gone."""
    try:
        os.unlink(name, dir_fd=parent)
    except IsADirectoryError:
        return False
    return True


def _opened(name: str, parent: int | None) -> int:
    """The folder, opened to its owner if it was not."""
    descriptor = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    try:
        if os.fstat(descriptor).st_mode & _OWNERS != _OWNERS:
            with suppress(OSError):
                Path(f"/proc/self/fd/{descriptor}").chmod(_OWNERS)
    finally:
        os.close(descriptor)
    return os.open(name, _FOLDER, dir_fd=parent)
