"""The layers that are being looked at, ready to draw: granules, their index, their zooms."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shapely import STRtree, box

from geostudio_dagster.errors import NotFound
from geostudio_dagster.publish.layers import boxes
from geostudio_dagster.storage import LocalStorage

if TYPE_CHECKING:
    from geostudio_dagster.catalog import LayerRecord

_FRESH_S = 2.0
_KEPT_LAYERS = 64
_KEPT_REQUESTS = 256
_GRANULES_PER_TILE = 64
_LARGEST_ZOOM = 22
_ZOOM_BEYOND_PIXELS = 2
_WORLD = 360.0


@dataclass(frozen=True)
class ShownLayer:
    """A layer with an index over its granules.

    Attributes:
        record: the layer as the catalog has it.
        paths: the granules' files, in the order in which they are drawn (first on top).
        minzoom: below it, a tile would take too many granules to draw.
        maxzoom: beyond it, pixels only grow.
    """

    record: LayerRecord
    paths: tuple[Path, ...]
    minzoom: int
    maxzoom: int
    _tree: STRtree
    _owners: tuple[int, ...]

    @classmethod
    def of(cls, record: LayerRecord, storage: LocalStorage) -> ShownLayer:
        """Index a layer's granules."""
        parts = [
            (place, part)
            for place, granule in enumerate(record.granules)
            for part in boxes(granule["bounds"])
        ]
        paths = tuple(storage.path(granule["key"]) for granule in record.granules)
        return cls(
            record=record,
            paths=paths,
            minzoom=_smallest_zoom(record),
            maxzoom=_largest_zoom(paths),
            _tree=STRtree([box(*part) for _, part in parts]),
            _owners=tuple(place for place, _ in parts),
        )

    def granules_in(self, bounds: Sequence[float]) -> list[int]:
        """Places of the granules whose bounds touch a box in EPSG:4326, in drawing order."""
        hits = self._tree.query(box(*bounds))
        return sorted({self._owners[int(hit)] for hit in hits})


class LayerShelf:
    """Layers by request and name, kept while they are in use.

    Args:
        find: gives a request's layers; raises NotFound where there is no such request.
        storage: where the granules lie.
        clock: seconds, monotonic.

    The catalog is asked again after two seconds, so a new publication shows soon; an index is
    built anew only when the layer's digest changes.
    """

    def __init__(
        self,
        find: Callable[[str], Sequence[LayerRecord]],
        storage: LocalStorage,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._find = find
        self._storage = storage
        self._clock = clock
        self._lock = threading.Lock()
        self._records: OrderedDict[str, tuple[float, tuple[LayerRecord, ...]]] = OrderedDict()
        self._shown: OrderedDict[tuple[str, str, str], ShownLayer] = OrderedDict()

    def records(self, request_id: str) -> tuple[LayerRecord, ...]:
        """The request's layers; empty while there are none.

        Raises:
            NotFound: there is no such request.
        """
        now = self._clock()
        with self._lock:
            known = self._records.get(request_id)
        if known and now - known[0] < _FRESH_S:
            return known[1]
        records = tuple(self._find(request_id))
        with self._lock:
            _keep(self._records, request_id, (now, records), _KEPT_REQUESTS)
        return records

    def record(self, request_id: str, name: str) -> LayerRecord:
        """One layer of a request, as the catalog has it.

        Raises:
            NotFound: there is no such request or layer.
        """
        records = self.records(request_id)
        record = next((item for item in records if item.name == name), None)
        if record is None:
            names = ", ".join(item.name for item in records) or "none yet"
            raise NotFound(f"Request {request_id} has no layer {name} (its layers: {names}).")
        return record

    def layer(self, request_id: str, name: str) -> ShownLayer:
        """One raster layer of a request.

        Raises:
            NotFound: there is no such request or layer, or it is one of vectors.
        """
        record = self.record(request_id, name)
        if record.kind == "vector":
            raise NotFound(
                f"Layer {name} of request {request_id} is a vector layer, which has no tiles and"
                " no values; ask for its features.geojson."
            )
        key = (request_id, name, record.digest)
        with self._lock:
            shown = self._shown.get(key)
            if shown:
                self._shown.move_to_end(key)
        if shown is None:
            shown = ShownLayer.of(record, self._storage)
            with self._lock:
                _keep(self._shown, key, shown, _KEPT_LAYERS)
        return shown


def _keep(kept: OrderedDict[Any, Any], key: object, value: object, limit: int) -> None:
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > limit:
        kept.popitem(last=False)


def _smallest_zoom(record: LayerRecord) -> int:
    count = len(record.granules)
    if count <= _GRANULES_PER_TILE:
        return 0
    west, south, east, north = record.bounds
    width = east - west if east > west else east - west + _WORLD
    whole = max(0, math.floor(math.log2(_WORLD / max(width, north - south, 1e-9))))
    return whole + math.ceil(math.log(count / _GRANULES_PER_TILE, 4))


def _largest_zoom(paths: Sequence[Path]) -> int:
    from rio_tiler.io import Reader  # takes a second to import

    if not paths or not paths[0].is_file():
        return _LARGEST_ZOOM
    with Reader(str(paths[0])) as reader:
        return int(min(reader.maxzoom + _ZOOM_BEYOND_PIXELS, _LARGEST_ZOOM))
