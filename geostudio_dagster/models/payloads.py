"""What endpoints are sent, and how their answers are read.

``tensor``: the body is a NumPy file (``.npy``) with the normalised batch, float32, C order,
(N, bands, H, W), or (N, bands, dates, H, W) for several dates. The answer is a NumPy file with
(N, channels, H, W) or (N, H, W), any float type: scores of a segmentation, values of a
regression.

``pooling``: vLLM's ``/pooling`` with TerraTorch's IO processor, one patch per request. The body
is ``{"model": ..., "data": {"data": <GeoTIFF>, "data_format": "b64_json", "out_data_format":
"b64_json", "indices": [0, 1, ...]}}``; the answer has the classes' GeoTIFF, base64, in
``data.data``. TerraTorch normalises by itself: leave ``mean`` and ``std`` out of the bundle's
bands, and use the patch size that the server cuts its input into. Classes have no scores, so
overlapping patches vote. Patches have no place on Earth, so models with location embeddings run
without. Newer TerraTorch takes no base64: with ``data_format: path`` a patch is put into the
folder that ``GEOSTUDIO_ENDPOINTS__SHARED_FOLDER`` names, which the server must see too.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from affine import Affine
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.io import MemoryFile

from geostudio_dagster.errors import TaskError
from geostudio_dagster.models.bundle import BundleManifest
from geostudio_dagster.models.endpoint import EndpointSettings
from geostudio_dagster.settings import EndpointsSettings

_VALUES = 256  # of a byte
# Pixels without a CRS have no place, and GDAL is silent about it if the transform isn't missing.
_NOWHERE = Affine(1, 0, 0, 0, -1, 0)


class Payload(Protocol):
    """How a batch, float32 (N, ...), becomes a request's body, and a response an output."""

    content_type: ClassVar[str]

    @property
    def batch_size(self) -> int | None:
        """The only batch size that fits into a request, or None for any."""

    def request(self, batch: NDArray[np.float32]) -> Any:
        """A context manager whose value is the body, usable within it."""

    def output(self, answer: bytes, batch: NDArray[np.float32], name: str) -> torch.Tensor:
        """The output, float32 (N, channels, H, W). ``name`` is the endpoint's, for messages.

        Raises:
            TaskError: ``endpoint_wrong``, the answer is not the output of this batch.
        """


def payload_of(
    manifest: BundleManifest, endpoint: EndpointSettings, settings: EndpointsSettings
) -> Payload:
    """The payload that the bundle's endpoint takes.

    Raises:
        TaskError: ``model_unusable``, patches should be handed over in a folder, but none is set.
    """
    if endpoint.payload == "tensor":
        return TensorPayload()
    if endpoint.data_format == "path" and settings.shared_folder is None:
        raise TaskError(
            "model_unusable",
            f"Model {manifest.name} hands patches over in a folder (data_format: path), but none "
            "is set; set GEOSTUDIO_ENDPOINTS__SHARED_FOLDER.",
        )
    folder = settings.shared_folder if endpoint.data_format == "path" else None
    return PoolingPayload(endpoint, len(manifest.classes), folder)


class TensorPayload:
    """NumPy files both ways."""

    content_type: ClassVar[str] = "application/x-npy"
    batch_size: ClassVar[None] = None

    @contextmanager
    def request(self, batch: NDArray[np.float32]) -> Iterator[bytes]:
        """The batch as a NumPy file."""
        buffer = io.BytesIO()
        np.save(buffer, batch, allow_pickle=False)
        yield buffer.getvalue()

    def output(self, answer: bytes, batch: NDArray[np.float32], name: str) -> torch.Tensor:
        """The array in the answer, if it is real, finite and of the batch's patches."""
        try:
            found = np.load(io.BytesIO(answer), allow_pickle=False)
        except (ValueError, OSError, EOFError, MemoryError) as error:
            raise _wrong(name, f"answers with something that is no NumPy file ({error})") from error
        if not isinstance(found, np.ndarray) or found.dtype.kind != "f":
            kind = found.dtype if isinstance(found, np.ndarray) else "an archive"
            raise _wrong(name, f"answers with {kind} instead of floating-point numbers")
        kept = found.shape[:1], found.shape[-2:]
        if found.ndim not in (3, 4) or kept != (batch.shape[:1], batch.shape[-2:]):
            raise _wrong(name, f"makes {found.shape} of {batch.shape}")
        if not np.isfinite(found).all():
            raise _wrong(name, "answers with numbers that are not finite")
        return torch.from_numpy(np.ascontiguousarray(found, dtype=np.float32))


class PoolingPayload:
    """GeoTIFFs in JSON both ways, patch by patch."""

    content_type: ClassVar[str] = "application/json"
    batch_size: ClassVar[int] = 1

    def __init__(self, endpoint: EndpointSettings, classes: int, folder: Path | None) -> None:
        self._endpoint = endpoint
        self._classes = classes
        self._folder = folder

    @contextmanager
    def request(self, batch: NDArray[np.float32]) -> Iterator[bytes]:
        """The patch as a GeoTIFF within JSON, or beside it in the shared folder."""
        picture = _tiff(batch[0])
        if self._folder is None:
            yield self._document(base64.b64encode(picture).decode("ascii"), len(batch[0]))
            return
        with tempfile.NamedTemporaryFile(dir=self._folder, suffix=".tif") as file:
            file.write(picture)
            file.flush()
            Path(file.name).chmod(0o644)  # the server may run as somebody else
            yield self._document(file.name, len(batch[0]))

    def _document(self, data: str, bands: int) -> bytes:
        inner = {
            "data": data,
            "data_format": self._endpoint.data_format,
            "out_data_format": "b64_json",
            "indices": list(range(bands)),
        }
        return json.dumps({"model": self._endpoint.model, "data": inner}).encode()

    def output(self, answer: bytes, batch: NDArray[np.float32], name: str) -> torch.Tensor:
        """The patch's classes as scores: 1 for the class, 0 for the others."""
        values = _values(answer, batch.shape[-2:], name)
        if self._endpoint.plugin == "terratorch_segmentation":
            # It multiplies classes by 255 and keeps the low byte: 0, 255, 254, ...
            values = (_VALUES - values) % _VALUES
        if values.min() < 0 or values.max() >= self._classes:
            raise _wrong(
                name, f"answers with the class {values.max()}, of {self._classes} in the manifest"
            )
        scores = torch.nn.functional.one_hot(torch.from_numpy(values), self._classes)
        return scores.permute(2, 0, 1).float().unsqueeze(0)


def _tiff(planes: NDArray[np.float32]) -> bytes:
    bands, height, width = planes.shape
    profile = {"count": bands, "height": height, "width": width, "dtype": "float32"}
    with MemoryFile() as memory:
        with memory.open(driver="GTiff", transform=_NOWHERE, **profile) as file:
            file.write(planes)
        return bytes(memory.read())


def _values(answer: bytes, shape: tuple[int, ...], name: str) -> NDArray[np.int64]:
    """The only band of the GeoTIFF in a pooling server's answer."""
    try:
        picture = base64.b64decode(json.loads(answer)["data"]["data"], validate=True)
        with MemoryFile(picture) as memory, memory.open(driver="GTiff") as file:
            if file.count != 1 or file.shape != shape:
                raise _wrong(name, f"makes {(file.count, *file.shape)} of a patch of {shape}")
            return np.asarray(file.read(1)).astype(np.int64)
    except (ValueError, KeyError, TypeError, binascii.Error, RasterioError) as error:
        raise _wrong(
            name, f"answers with something that holds no GeoTIFF in data.data ({error})"
        ) from error


def _wrong(name: str, clause: str) -> TaskError:
    return TaskError("endpoint_wrong", f"{name} {clause}.")
