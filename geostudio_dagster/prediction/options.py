"""What a caller may choose about a prediction; the defaults depend on the machine only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from geostudio_dagster.models.bundle import OnnxEngine, Precision
from geostudio_dagster.models.tuning import EVERYTHING, Tuning


@dataclass(frozen=True, slots=True)
class PredictOptions:
    """Choices of one prediction. None means: what suits the machine and the bundle.

    Attributes:
        device: ``cpu``, ``cuda``, ``cuda:1``; None takes a GPU where there is one.
        precision: ``exact`` is float32; ``auto`` is bfloat16 where the device computes in it; None
            is what the bundle says, or else ``exact``.
        onnx_engine: what runs ONNX models: ``openvino``, ``onnxruntime``; ``auto`` is OpenVINO on
            a processor, where it is installed.
        tuning: what may be done to a torch network to make it quicker.
        batch_size: patches per forward pass.
        workers: forward passes at the same time, each in its own thread.
        threads: threads within one forward pass.
        patch: side of the model's input square, pixels; None is the bundle's.
        overlap: pixels that neighbouring patches share; None is the bundle's.
        trim: pixels without weight at inner patch edges; None is the bundle's.
        memory: bytes for the pixels in flight; wider scenes are worked in panels.
        calibrations: folder where measured choices of batch size, workers and threads are kept,
            for what is None above and work that is long enough; None goes by rule alone.
        programs: folder where networks of TerraTorch are kept as programs, which load with torch
            alone; None builds them each time.
        profile: file to draw the stages' timeline into, ``.svg`` or ``.html``.
    """

    device: str | None = None
    precision: Precision | None = None
    batch_size: int | None = None
    workers: int | None = None
    threads: int | None = None
    patch: int | None = None
    overlap: int | None = None
    trim: int | None = None
    memory: int = 64 * 1024**2
    calibrations: Path | None = None
    programs: Path | None = None
    profile: Path | None = None
    onnx_engine: OnnxEngine = "auto"
    tuning: Tuning = EVERYTHING

    def __post_init__(self) -> None:
        for name in ("batch_size", "workers", "threads", "patch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
