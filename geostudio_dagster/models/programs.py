"""Programs: networks of TerraTorch kept as graph and weights, which load with torch alone.

Each shard's run is a process of its own, and importing TerraTorch takes it longer than most
small tasks. So a program is made of a bundle (:mod:`conversion`) where nobody waits for pixels:
as it is registered, after a prediction at the terminal, or by the housekeeping. Every load
from then on, in any process, reads that. The folder is the installation's own, as its
calibrations are; a file that is not whole counts as none, and goes.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from uuid import uuid4

from geostudio_dagster.models.bundle import Bundle
from geostudio_dagster.models.memory import is_out_of_memory

if TYPE_CHECKING:
    from geostudio_dagster.models.graph import Graph

log = logging.getLogger(__name__)

# Of what is in a file, how it is built and what was folded before: one up with each change.
_FORMAT = 5
CONVERTED = frozenset({"terratorch"})  # runtimes whose networks take long to build
# Whose code is in a graph, or made it.
_MAKERS = ("torch", "terratorch", "timm", "segmentation-models-pytorch", "torchgeo")
_SUFFIX, _TRIED = ".pt", ".tried"


@dataclass(frozen=True, slots=True)
class Program:
    """What is kept of a bundle.

    Attributes:
        graph: of the network; None where it has none.
        folded: batch normalisations that convolutions carry in it.
        channels_last: whether its convolutions compute with the channels last.
        refusal: why there is no graph: the network is built each time.
    """

    graph: Graph | None
    folded: int = 0
    channels_last: bool = False
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class ProgramFile:
    """Where the program of one bundle is kept, for one patch size and these versions."""

    path: Path
    key: str

    @classmethod
    def of(cls, bundle: Bundle, folder: Path) -> ProgramFile:
        """Its place in ``folder``, whether there is anything or not."""
        return cls.at(folder, bundle.digest, bundle.manifest.patch.size)

    @classmethod
    def at(cls, folder: Path, digest: str, size: int) -> ProgramFile:
        """The same, for the bundle of this digest and patches of ``size`` pixels."""
        key = json.dumps(
            {
                "format": _FORMAT,
                "model": digest,
                "patch": size,
                "versions": {package: _version(package) for package in _MAKERS},
            }
        )
        return cls(folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}{_SUFFIX}", key)

    @property
    def exists(self) -> bool:
        """Whether something is kept, be it that there can't be a program."""
        return self.path.is_file()

    def read(self) -> Program | None:
        """What is kept; None where nothing is, or nothing that can be used.

        What is wrong in itself is removed; what can't be read now stays.

        Raises:
            MemoryError, RuntimeError: memory does not do for it.
        """
        if not self.exists:
            return None
        try:
            with self.path.open("rb") as file:
                found = _content(file)
            program = self._own(found)
        except OSError as error:
            log.warning("%s can't be read now: %s", self.path, error)
            return None
        except Exception as error:
            if is_out_of_memory(error):
                raise
            # torch raises whatever it meets in a file that is cut off or foreign.
            log.warning("%s is no program (%s); it is removed", self.path, type(error).__name__)
            self.remove()
            return None
        with contextlib.suppress(OSError):
            os.utime(self.path)  # by which remove_unused_programs knows that it is used
        return program

    def keep(self, program: Program) -> None:
        """Write it whole or not at all; several processes may do so at once.

        Raises:
            OSError: the folder can't be written to, or is full.
        """
        import torch

        self.path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.path.with_name(f".{self.path.stem}.{uuid4().hex}")
        content = {
            "key": self.key,
            "calls": program.graph.calls if program.graph else "",
            "tensors": program.graph.tensors if program.graph else {},
            "packs": program.graph.packs if program.graph else (),
            "convolved": program.graph.convolved if program.graph else {},
            "steady": program.graph.steady if program.graph else (),
            "seen_on": program.graph.seen_on if program.graph else "",
            "folded": program.folded,
            "channels_last": program.channels_last,
            "refusal": program.refusal,
        }
        try:
            with scratch.open("wb") as stream:
                torch.save(content, stream)
                stream.flush()
                os.fsync(stream.fileno())
            scratch.replace(self.path)
            self._mark.unlink(missing_ok=True)
        finally:
            scratch.unlink(missing_ok=True)

    def remove(self) -> None:
        """Have it made anew; where the folder can't be written to, it stays."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    def begin(self, since: float) -> bool:
        """Say that it is being made; False if that was begun after ``since`` (of the epoch).

        That stands in a file until the program is kept: whoever is killed over it leaves word.
        False, too, where the folder can't be written to, for no program could be kept.
        """
        mark = self._mark
        try:
            if mark.exists() and mark.stat().st_mtime > since:
                return False
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
        except OSError as error:
            log.warning("no program can be kept in %s: %s", mark.parent, error)
            return False
        return True

    def _own(self, found: dict[str, Any]) -> Program:
        """What a file holds, which must say itself whose it is: its name is a short digest only."""
        if found["key"] != self.key:
            raise ValueError("it is of another model")
        return Program(
            _graph(found),
            int(found["folded"]),
            bool(found["channels_last"]),
            str(found["refusal"]),
        )

    @property
    def _mark(self) -> Path:
        return self.path.with_suffix(_TRIED)


def graph_in(file: BinaryIO) -> Graph:
    """The graph of an open program, read again from its beginning.

    Raises:
        OSError: it can't be read. MemoryError, RuntimeError: memory does not do for it.
    """
    file.seek(0)
    graph = _graph(_content(file))
    assert graph is not None, "only a graph is read again"  # noqa: S101
    return graph


def remove_unused_programs(
    folder: Path, needed: Collection[str], silent_since: float, most_bytes: int, limit: int
) -> list[str]:
    """Remove what nobody loaded since then, and the oldest of what is too much; their names.

    Args:
        folder: of programs. needed: names of files that stay for as long as there is room.
        silent_since: seconds of the epoch. most_bytes: that may stay.
        limit: files removed at most.
    """
    removed: list[str] = []
    found = sorted(_files(folder))
    left = sum(size for _, size, _ in found)
    for used, size, path in found:
        idle = used < silent_since and path.name not in needed
        if len(removed) < limit and (idle or left > most_bytes):
            path.unlink(missing_ok=True)
            removed.append(path.name)
            left -= size
    return removed


def bytes_of_programs(folder: Path) -> int:
    """What all programs take."""
    return sum(size for _, size, _ in _files(folder))


def _files(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """When each file was used last (seconds of the epoch), its bytes and its path."""
    for path in folder.iterdir() if folder.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):  # taken away by somebody else meanwhile
            facts = path.stat()
            yield facts.st_mtime, facts.st_size, path


def _content(file: BinaryIO) -> dict[str, Any]:
    import torch

    content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return content


def _graph(content: dict[str, Any]) -> Graph | None:
    from geostudio_dagster.models.graph import Graph

    if not content["calls"]:
        return None
    return Graph(
        content["calls"],
        content["tensors"],
        packs=tuple(content["packs"]),
        convolved=dict(content["convolved"]),
        steady=tuple(content["steady"]),
        seen_on=str(content["seen_on"]),
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
