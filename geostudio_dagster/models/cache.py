"""Loaded models of this process, so that all its tasks and shards load each bundle once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

from geostudio_dagster.models.bundle import Bundle, OnnxEngine
from geostudio_dagster.models.tuning import EVERYTHING, Tuning

if TYPE_CHECKING:
    from geostudio_dagster.models.runtime import Model

CAPACITY = 2

_Key = tuple[str, str, int, OnnxEngine, Tuning]


class ModelCache:
    """Keeps the models used last, by digest, device, patch size, ONNX engine and tuning.

    Thread-safe.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.loads = 0
        self._capacity = capacity
        self._models: OrderedDict[_Key, Model] = OrderedDict()
        self._lock = threading.Lock()
        self._loading: dict[_Key, threading.Lock] = {}

    def get(
        self,
        bundle: Bundle,
        device: str,
        *,
        onnx_engine: OnnxEngine = "auto",
        programs: Path | None = None,
        tuning: Tuning = EVERYTHING,
    ) -> Model:
        """The loaded model; whoever asks first loads it, others of the same key wait for that.

        Raises:
            TaskError: as for :func:`geostudio_dagster.models.runtime.load_runtime`.
        """
        key = bundle.digest, device, bundle.manifest.patch.size, onnx_engine, tuning
        with self._lock:
            gate = self._loading.setdefault(key, threading.Lock())
        with gate:
            model = self._recall(key)
            if model is not None:
                return model
            from geostudio_dagster.models.runtime import load_runtime

            model = load_runtime(
                bundle, device, onnx_engine=onnx_engine, programs=programs, tuning=tuning
            )
            return self._keep(key, model)

    def clear(self) -> None:
        """Forget all models."""
        with self._lock:
            self._models.clear()

    def _recall(self, key: _Key) -> Model | None:
        with self._lock:
            model = self._models.get(key)
            if model is not None:
                self._models.move_to_end(key)
            return model

    def _keep(self, key: _Key, model: Model) -> Model:
        with self._lock:
            self.loads += 1
            self._models[key] = model
            while len(self._models) > self._capacity:
                self._models.popitem(last=False)
        return model


MODELS = ModelCache()


def loaded(
    bundle: Bundle,
    device: str = "cpu",
    *,
    onnx_engine: OnnxEngine = "auto",
    programs: Path | None = None,
    tuning: Tuning = EVERYTHING,
) -> Model:
    """The bundle's model on ``device``, from this process's cache."""
    return MODELS.get(bundle, device, onnx_engine=onnx_engine, programs=programs, tuning=tuning)
