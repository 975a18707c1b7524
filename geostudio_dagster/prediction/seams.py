"""What patches of one panel have to say about the next: kept on disk, row by row of patches."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from geostudio_dagster.prediction.batches import Patch


class Seam:
    """The right-hand edges of patches' outputs, in a nameless file, so that memory stays constant.

    A context manager; its file is gone afterwards, whatever happens.
    """

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed at the end
        self._places: defaultdict[int, list[tuple[Patch, int]]] = defaultdict(list)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def keep(self, patch: Patch, edge: Tensor) -> None:
        """Keep the last columns of a patch's output, float32 (channels, size, columns)."""
        self._places[patch.row].append((patch, self._file.seek(0, 2)))
        np.save(self._file, edge.cpu().numpy())

    def take(self, row: int) -> list[tuple[Patch, Tensor]]:
        """What was kept of this row of patches, in order; it is no longer kept then."""
        return [(patch, self._read(place)) for patch, place in self._places.pop(row, [])]

    def _read(self, place: int) -> Tensor:
        self._file.seek(place)
        return torch.from_numpy(np.load(self._file))
