"""What patches of one panel have to say about the next: kept on disk, row by row of patches."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np
import torch
from torch import Tensor

from geostudio_dagster.prediction.batches import Patch


class Seam:
    """The right-hand edges of patches' outputs, in nameless files, so that memory stays constant.

    Each panel's edges have a file of their own, which is gone once the next panel is finished, so
    the disk holds those of two panels at most. A context manager; afterwards all files are gone,
    whatever happens.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._before = _Edges(folder)
        self._kept = _Edges(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._before.close()
        self._kept.close()

    def begin(self) -> None:
        """A panel begins: what the one before kept can be taken now, what that took is gone."""
        self._before.close()
        self._before, self._kept = self._kept, _Edges(self._folder)

    def keep(self, patch: Patch, edge: Tensor) -> None:
        """Keep the last columns of a patch's output, float32 (channels, size, columns)."""
        self._kept.add(patch, edge)

    def take(self, row: int) -> list[tuple[Patch, Tensor]]:
        """What the panel before kept of this row of patches, in order."""
        return self._before.of(row)


class _Edges:
    """The edges of one panel, in a file that is made for the first of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._places: defaultdict[int, list[tuple[Patch, int]]] = defaultdict(list)

    def add(self, patch: Patch, edge: Tensor) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - see close
        self._places[patch.row].append((patch, self._file.tell()))
        np.save(self._file, edge.cpu().numpy())

    def of(self, row: int) -> list[tuple[Patch, Tensor]]:
        return [(patch, self._read(place)) for patch, place in self._places.get(row, [])]

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _read(self, place: int) -> Tensor:
        assert self._file is not None, "what has a place is in the file"  # noqa: S101
        self._file.seek(place)
        return torch.from_numpy(np.load(self._file))
