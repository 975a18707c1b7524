"""Runtimes: how each kind of bundle becomes a function from pixels to outputs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geostudio_dagster.cores import computing_with, usual_threads
from geostudio_dagster.errors import TaskError
from geostudio_dagster.models.attention import AttentionWatch
from geostudio_dagster.models.bundle import Bundle, BundleManifest, OnnxEngine
from geostudio_dagster.models.contract import InputSpec, Loader, Runtime
from geostudio_dagster.models.exported import load_exported, load_scripted
from geostudio_dagster.models.folding import fold_batch_norms
from geostudio_dagster.models.graph import NO_GRAPH
from geostudio_dagster.models.layout import keep_channels_last
from geostudio_dagster.models.memory import is_out_of_memory
from geostudio_dagster.models.modules import ProgramRuntime, TorchRuntime
from geostudio_dagster.models.onnx import load_onnx
from geostudio_dagster.models.packing import Batches
from geostudio_dagster.models.programs import CONVERTED, ProgramFile
from geostudio_dagster.models.remote import load_endpoint
from geostudio_dagster.models.terratorch import load_terratorch
from geostudio_dagster.models.tuning import EVERYTHING, Tuning

log = logging.getLogger(__name__)

_LOADERS: dict[str, Loader] = {
    "torchscript": load_scripted,
    "torch_export": load_exported,
    "terratorch": load_terratorch,
    "http": load_endpoint,
}
_OUTPUT_KEYS = ("output", "logits", "out", "prediction")


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded bundle: call it with a batch.

    Attributes:
        runtime: what computes.
        channels: of the output; as many as classes for a segmentation.
        binary: whether one logit stands for two classes.
        folded: batch normalisations that convolutions carry now.
        channels_last: whether torch's convolutions compute with the channels last.
        attends: whether it is a transformer.
        tuning: what could be done to it.
    """

    runtime: Runtime
    channels: int = 1
    binary: bool = False
    folded: int = 0
    channels_last: bool = False
    attends: bool = False
    tuning: Tuning = EVERYTHING

    @property
    def engine(self) -> str:
        """What computes: ``torch``, ``onnxruntime``, ``openvino`` or ``endpoint``."""
        return self.runtime.engine

    @property
    def batch_size(self) -> int | None:
        """The only batch size that the model takes, or None for any."""
        return self.runtime.batch_size

    @property
    def concurrency(self) -> int | None:
        """Batches to ask it at the same time; None where the machine's cores decide."""
        return self.runtime.concurrency

    @property
    def autocasts(self) -> bool:
        """Whether it computes in bfloat16 where the calling thread is under torch's autocast."""
        return self.runtime.autocasts

    @property
    def device(self) -> str:
        """Where its outputs are."""
        return self.runtime.device

    @property
    def packed(self) -> int:
        """Weights of convolutions that are packed now."""
        return self.runtime.packed if isinstance(self.runtime, ProgramRuntime) else 0

    def expecting(self, batches: Batches, *, first: bool = False) -> AbstractContextManager[None]:
        """In the body such batches come: numbers don't depend on it, speed may.

        ``first``: before what others expect meanwhile.
        """
        if isinstance(self.runtime, ProgramRuntime):
            return self.runtime.expecting(batches, first=first)
        return nullcontext()

    def takes_fewer(self) -> bool:
        """Whether the patches of a smaller batch give the same numbers, and as soon.

        As known for the calling thread's autocast; False where it isn't.
        """
        return isinstance(self.runtime, ProgramRuntime) and self.runtime.takes_fewer()

    def __call__(self, pixels: Tensor) -> Tensor:
        """Outputs of normalised pixels.

        Takes float32 (N, dates x bands, H, W), ordered by date, then by band; models of several
        dates see it as (N, bands, dates, H, W). Gives float32 (N, channels, H, W) on ``device``:
        class scores for a segmentation, values for a regression.
        """
        output = as_tensor(self.runtime.forward(pixels)).float()
        if output.ndim == 3:  # noqa: PLR2004 - (N, H, W)
            output = output.unsqueeze(1)
        if self.binary:
            # One logit of the second class; the first has the score 0.
            output = torch.cat([torch.zeros_like(output), output], dim=1)
        return output


def load_runtime(
    bundle: Bundle,
    device: str = "cpu",
    *,
    onnx_engine: OnnxEngine = "auto",
    programs: Path | None = None,
    tuning: Tuning = EVERYTHING,
) -> Model:
    """Load the bundle's weights and try them on one empty patch.

    Args:
        bundle: the model. device: where it computes. onnx_engine: what runs it, if it is ONNX.
        programs: folder to take the network's program from, if there is one; see
            :mod:`programs`. Outputs are the same bytes with and without on a processor; on a
            GPU the weights are. None is taken for a tuning that programs don't have.
        tuning: what may be done to a torch network.

    Raises:
        TaskError: ``model_unusable``, weights that don't load, don't fit the configuration, or
            give an output that isn't what the manifest says; ``no_such_engine``, what is to run
            ONNX models isn't there.
        MemoryError, RuntimeError: the machine's memory, or a GPU's, does not do for it now.
    """
    model = None
    if programs is not None and bundle.manifest.runtime in CONVERTED and tuning.as_programs:
        model = _of_program(bundle, device, ProgramFile.of(bundle, programs), pack=tuning.pack)
    return replace(model or _built(bundle, device, onnx_engine, tuning), tuning=tuning)


def _of_program(bundle: Bundle, device: str, place: ProgramFile, *, pack: bool) -> Model | None:
    """The model from its program; None where that can't be, and building it tells more."""
    program = place.read()
    if program is None or program.graph is None:
        return None
    try:
        runtime = ProgramRuntime(program.graph, device, place.path.open("rb"), pack=pack)
        model = _checked(runtime, bundle)
    except NO_GRAPH:
        log.warning("%s is no program of its model; it is removed", place.path, exc_info=True)
        place.remove()
    except (TaskError, OSError):
        log.warning("%s can't be used here, the network is built", place.path, exc_info=True)
    else:
        return replace(model, folded=program.folded, channels_last=program.channels_last)
    return None


def _built(bundle: Bundle, device: str, onnx_engine: OnnxEngine, tuning: Tuning) -> Model:
    """The model as its own loader makes it."""
    manifest = bundle.manifest
    # Folded on the processor wherever it computes, as programs are: so weights are the same bits.
    first = "cpu" if manifest.runtime in CONVERTED else device
    # Engines of ONNX compile for a number of threads; for a worker's, so that it is done once.
    as_later = computing_with(usual_threads()) if manifest.runtime == "onnx" else nullcontext()
    with as_later:
        model = _checked(_loaded(bundle, first, onnx_engine), bundle)
    if not isinstance(model.runtime, TorchRuntime):
        return model
    runtime, folded, channels_last = _tuned(model.runtime, manifest, tuning)
    if first != device:
        runtime = runtime.moved(device)
        model = _checked(runtime, bundle)
    return replace(model, runtime=runtime, folded=folded, channels_last=channels_last)


def _loaded(bundle: Bundle, device: str, onnx_engine: OnnxEngine) -> Runtime:
    manifest = bundle.manifest
    loaders = _LOADERS | {"onnx": partial(load_onnx, engine=onnx_engine)}
    try:
        return loaders[manifest.runtime](bundle, device)
    except TaskError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        # Loaders of torch raise whatever they meet in a foreign file.
        raise TaskError(
            "model_unusable",
            f"{manifest.weights} of model {manifest.name} can't be loaded as "
            f"{manifest.runtime}: {_first_line(error)}.",
            retryable=isinstance(error, OSError),  # of a disk, as it may be on a network
        ) from error


def _checked(runtime: Runtime, bundle: Bundle) -> Model:
    """The model, once it has made of an empty patch what the manifest says."""
    manifest = bundle.manifest
    with AttentionWatch() as watch:
        channels = _try(Model(runtime), bundle)
    binary = manifest.task == "segmentation" and channels == 1 and len(manifest.classes) == 2  # noqa: PLR2004
    expected = len(manifest.classes)
    if manifest.task == "segmentation" and not binary and channels != expected:
        raise TaskError(
            "model_unusable",
            f"Model {manifest.name} gives {channels} channels but its manifest has {expected} "
            "classes; correct the list of classes.",
        )
    channels = 2 if binary else channels
    return Model(runtime, channels, binary, attends=watch.seen)


def _tuned(
    runtime: TorchRuntime, manifest: BundleManifest, tuning: Tuning
) -> tuple[TorchRuntime, int, bool]:
    """A torch module made quicker without changing what it gives.

    Also how many normalisations were folded, and whether the channels are kept last.
    """
    runtime = replace(runtime, channels_last=tuning.channels_last)
    torch.set_float32_matmul_precision("highest")  # see forward.ForwardPass; or nothing is close
    size, planes = manifest.patch.size, InputSpec.of(manifest).planes
    shape = runtime.batch_size or 2, planes, size, size
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    one = pixels[: runtime.batch_size or 1]
    folded, kept = 0, False
    if tuning.fold:
        folded = fold_batch_norms(runtime.module, lambda: as_tensor(runtime.forward(one)))
    if tuning.channels_last:
        kept = keep_channels_last(runtime.module, lambda: as_tensor(runtime.forward(pixels)))
    return runtime, folded, kept


def _try(model: Model, bundle: Bundle) -> int:
    """Channels of the output for one batch of zeros."""
    manifest = bundle.manifest
    size, planes = manifest.patch.size, InputSpec.of(manifest).planes
    pixels = torch.zeros((model.batch_size or 1, planes, size, size))
    given = f"{planes} planes of {size} x {size} pixels"
    try:
        with torch.inference_mode():
            output = model(pixels)
    except TaskError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise TaskError(
            "model_unusable",
            f"Model {manifest.name} does not take {given}, as its manifest says "
            f"(bands, dates, patch.size): {_first_line(error)}.",
        ) from error
    if output.ndim != 4 or output.shape[0] != len(pixels) or output.shape[2:] != (size, size):  # noqa: PLR2004
        raise TaskError(
            "model_unusable",
            f"Model {manifest.name} makes {tuple(output.shape)} of {tuple(pixels.shape)}; it must "
            "keep the batch, height and width.",
        )
    return int(output.shape[1])


def as_tensor(output: Any) -> Tensor:
    """The tensor in what a model returned: itself, its field ``output``, or its first entry."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        for key in _OUTPUT_KEYS:
            if key in output:
                return as_tensor(output[key])
        return as_tensor(next(iter(output.values())))
    if isinstance(output, list | tuple) and output:
        return as_tensor(output[0])
    if hasattr(output, "output"):
        return as_tensor(output.output)
    raise TypeError(f"the model returns {type(output).__name__}, not a tensor")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
