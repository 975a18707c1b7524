"""The configuration that a TerraTorch tune was made with, as far as a prediction depends on it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from geostudio_dagster.errors import InvalidRequest
from geostudio_dagster.models.bundle import PatchSettings, Precision, TaskKind
from geostudio_dagster.models.tune_options import shortened

MOST_BYTES = 1024**2
_MOST_BANDS = 512
_MOST_VALUES = 100_000
_TASKS: dict[str, TaskKind] = {
    "SemanticSegmentationTask": "segmentation",
    "PixelwiseRegressionTask": "regression",
}
_GENERIC = "Generic"  # data modules of this name normalise by what the file says, and only by that
_MULTIMODAL = "GenericMultiModalDataModule"
# What TerraTorch's tiled inference does unless it is told otherwise; GEOStudio's own stride.
_CROP, _STRIDE, _DELTA = 224, 208, 8
_PAIR = 2
_HALF = ("16", "bf16")  # how Lightning's names of such a trainer's precision begin


@dataclass(frozen=True, slots=True)
class Modality:
    """One input of the model.

    Attributes:
        name: the key that it is given under; None for a model that takes one tensor.
        file_bands: names of the bands of a file, in its order; empty where they are not told.
        bands: names of the bands that the model takes, in its order; empty where not told.
        means, stds: by which a band is normalised; empty where it is not.
        scale: what every pixel is multiplied by before that.
        rgb: places in ``bands`` of red, green and blue, or empty.
    """

    name: str | None
    file_bands: tuple[str, ...]
    bands: tuple[str, ...]
    means: tuple[float, ...]
    stds: tuple[float, ...]
    scale: float
    rgb: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TuneConfig:
    """What a prediction needs to know from ``config_deploy.yaml``."""

    task: TaskKind
    modalities: tuple[Modality, ...]
    dates: int
    patch: PatchSettings
    class_count: int | None
    class_names: tuple[str, ...]
    precision: Precision | None = None


def read_config(path: Path) -> TuneConfig:
    """Read a configuration; nothing in it is executed.

    Raises:
        InvalidRequest: not YAML, too large, or without what a prediction needs.
    """
    if path.stat().st_size > MOST_BYTES:
        raise refused("", f"is larger than {MOST_BYTES} bytes", "give the tune's configuration")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        # Both loaders are the safe one; the C one takes a tenth of the time.
        document = yaml.load(path.read_text("utf-8"), Loader=loader)  # noqa: S506
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise refused("", f"is not readable YAML ({reason})", "send the file itself") from error
    if _is_larger_than(_MOST_VALUES, document):
        remedy = "write the values out, without aliases of aliases"
        raise refused("", f"stands for more than {_MOST_VALUES} values", remedy)
    return parse_config(document)


def parse_config(document: object) -> TuneConfig:
    """Read a configuration that is decoded already.

    Raises:
        InvalidRequest: it lacks what a prediction needs.
    """
    model, data = _section(document, "model"), _section(document, "data", needed=False)
    model_args = _mapping(model["init_args"], "model_args", "model.init_args.model_args")
    task = _task(model, data)
    arguments = data["init_args"]
    names = arguments.get("class_names") or model["init_args"].get("class_names") or ()
    return TuneConfig(
        task=task,
        modalities=_modalities(data, model_args),
        dates=_whole(
            model_args.get("backbone_num_frames") or model_args.get("num_frames") or 1,
            "model.init_args.model_args.backbone_num_frames",
        ),
        patch=_patch(model["init_args"]),
        class_count=_class_count(model, model_args, arguments) if task == "segmentation" else None,
        class_names=tuple(map(str, _listed(names, "class_names"))),
        precision=_precision(document),
    )


def _precision(document: object) -> Precision | None:
    """``auto`` where TerraTorch computes with less than 32 bits, as the trainer's section says."""
    trainer = document.get("trainer") if isinstance(document, Mapping) else None
    told = trainer.get("precision") if isinstance(trainer, Mapping) else None
    return "auto" if str(told).startswith(_HALF) else None


def _is_larger_than(most: int, document: object) -> bool:
    """Whether there are more values than that, each alias counted for what it stands for."""
    waiting, seen = [document], 0
    while waiting:
        value = waiting.pop()
        seen += 1
        if seen + len(waiting) > most:
            return True
        if isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list | tuple | set):
            waiting += value
    return False


def refused(field: str, problem: str, remedy: str) -> InvalidRequest:
    """What is wrong at ``field`` of the configuration."""
    return InvalidRequest(f"tune_config: {field}" if field else "tune_config", problem, remedy)


def _section(document: object, name: str, *, needed: bool = True) -> dict[str, Any]:
    """Section ``model`` or ``data``, whose init_args are a mapping."""
    found = document.get(name) if isinstance(document, Mapping) else None
    if found is None and not needed:
        return {"class_path": "", "init_args": {}}
    if not isinstance(found, Mapping) or not isinstance(found.get("init_args"), Mapping):
        raise refused(
            name,
            "is not a section with class_path and init_args",
            "give the configuration that the tune was made with",
        )
    return {"class_path": str(found.get("class_path") or ""), "init_args": dict(found["init_args"])}


def _task(model: Mapping[str, Any], data: Mapping[str, Any]) -> TaskKind:
    name = model["class_path"].rpartition(".")[2]
    if not name:
        told = f"{data['class_path']} {data['init_args'].get('task')}".lower()
        for kind in ("segmentation", "regression"):
            if kind in told:
                return "segmentation" if kind == "segmentation" else "regression"
    if name not in _TASKS:
        raise refused(
            "model.class_path",
            f"names {name[:100] or 'no task'}, which gives no map here",
            f"use a tune of {' or '.join(_TASKS)}",
        )
    return _TASKS[name]


def _class_count(
    model: Mapping[str, Any], model_args: Mapping[str, Any], arguments: Mapping[str, Any]
) -> int | None:
    given = (
        model_args.get("num_classes")
        or model["init_args"].get("num_classes")
        or arguments.get("num_classes")
    )
    return None if given is None else _whole(given, "model.init_args.model_args.num_classes")


def _modalities(data: Mapping[str, Any], model_args: Mapping[str, Any]) -> tuple[Modality, ...]:
    arguments = data["init_args"]
    if data["class_path"].rpartition(".")[2] != _MULTIMODAL:
        return (_modality(None, data, model_args),)
    names = _listed(
        arguments.get("modalities") or model_args.get("backbone_modalities"),
        "data.init_args.modalities",
    )
    if not names:
        raise refused(
            "data.init_args.modalities", "is missing", "list the modalities that the model takes"
        )
    return tuple(_modality(str(name), data, model_args) for name in names)


def _modality(name: str | None, data: Mapping[str, Any], model_args: Mapping[str, Any]) -> Modality:
    arguments = data["init_args"]

    def told(*keys: str) -> tuple[Any, str]:
        """The first of the keys that is there, of this modality, and where it stands."""
        for key in keys:
            value = arguments.get(key)
            place = f"data.init_args.{key}"
            if name is not None and isinstance(value, Mapping):
                value, place = value.get(name), f"{place}.{name}"
            if value:
                return value, place
        return None, f"data.init_args.{keys[0]}"

    file_bands = _band_names(*told("predict_dataset_bands", "dataset_bands"))
    bands = _band_names(*told("predict_output_bands", "output_bands")) or file_bands
    means, stds = _numbers(*told("means")), _numbers(*told("stds"))
    bands = bands or _bands_of_backbone(model_args, name)
    _check_normalisation(data["class_path"], bands, means, stds, name)
    scale = told("constant_scale")
    return Modality(
        name=name,
        file_bands=file_bands,
        bands=bands,
        means=means,
        stds=stds,
        scale=_number(scale[0], scale[1]) if scale[0] is not None else 1.0,
        rgb=_rgb(told("rgb_indices")[0]),
    )


def _check_normalisation(
    class_path: str,
    bands: Sequence[str],
    means: Sequence[float],
    stds: Sequence[float],
    name: str | None,
) -> None:
    field = "data.init_args.means" + (f".{name}" if name else "")
    kind = class_path.rpartition(".")[2]
    if not means and not kind.startswith(_GENERIC):
        raise refused(
            field,
            f"is missing, and {kind or 'no data module'} does not tell them",
            "write means and stds of the training data into the configuration",
        )
    if len(means) != len(stds):
        raise refused(
            field, f"has {len(means)} numbers, but stds has {len(stds)}", "give one of each a band"
        )
    if means and bands and len(means) != len(bands):
        raise refused(
            field,
            f"has {len(means)} numbers for {len(bands)} bands ({', '.join(bands[:8])})",
            "give one number for each band that the model takes",
        )
    if any(std <= 0 for std in stds):
        raise refused(
            field.replace("means", "stds"), "has a number that is not above 0", "correct it"
        )


def _bands_of_backbone(model_args: Mapping[str, Any], name: str | None) -> tuple[str, ...]:
    value = model_args.get("backbone_bands") or model_args.get("bands")
    if isinstance(value, Mapping):
        value = value.get(name) if name is not None else next(iter(value.values()), None)
    return _band_names(value, "model.init_args.model_args.backbone_bands")


def _band_names(value: object, field: str) -> tuple[str, ...]:
    """Names of bands; a pair of numbers stands for all from the first to the second."""
    names: list[str] = []
    for entry in _listed(value, field):
        if isinstance(entry, list | tuple) and len(entry) == _PAIR:
            first, last = (_whole(end, field, least=0) for end in entry)
            names += map(str, range(first, min(last, first + _MOST_BANDS) + 1))
        elif isinstance(entry, str | int) and not isinstance(entry, bool) and str(entry).strip():
            names.append(str(entry).strip().rpartition("HLSBands.")[2])
        else:
            raise refused(
                field, f"has an entry that names no band ({shortened(entry)})", "name bands"
            )
    if len(names) > _MOST_BANDS:
        raise refused(field, f"has more than {_MOST_BANDS} bands", "give those of the model")
    return tuple(names)


def _patch(init_args: Mapping[str, Any]) -> PatchSettings:
    field = "model.init_args.tiled_inference_parameters"
    tiles = _mapping(init_args, "tiled_inference_parameters", field)

    def side(what: str, default: int) -> int:
        found = {tiles[key] for key in (what, f"h_{what}", f"w_{what}") if tiles.get(key)}
        if len(found) > 1:
            raise refused(
                f"{field}.h_{what}", f"differs from w_{what}", "give squares: both the same"
            )
        return _whole(found.pop() if found else default, f"{field}.h_{what}")

    size = side("crop", _CROP)
    stride = side("stride", min(_STRIDE, size))
    if stride > size:
        raise refused(
            f"{field}.h_stride", f"{stride} is larger than h_crop {size}", "let the squares overlap"
        )
    delta = _whole(tiles.get("delta", _DELTA), f"{field}.delta", least=0)
    overlap = size - stride
    try:
        return PatchSettings(size=size, overlap=overlap, trim=min(delta, overlap // 2))
    except ValidationError as error:
        first = error.errors()[0]
        raise refused(f"{field}.h_crop", str(first["msg"]), "correct it") from error


def _rgb(value: object) -> tuple[int, ...]:
    plain = list(value) if isinstance(value, list | tuple) else []
    whole = [item for item in plain if isinstance(item, int) and item >= 0]
    return tuple(whole) if len(whole) == len(plain) == len("RGB") else ()


def _mapping(parent: Mapping[str, Any], key: str, field: str) -> Mapping[str, Any]:
    value = parent.get(key) or {}
    if not isinstance(value, Mapping):
        raise refused(field, "is not a mapping", "write key: value below it")
    return value


def _listed(value: object, field: str) -> Sequence[Any]:
    if value is None or value == ():
        return ()
    if not isinstance(value, list | tuple):
        remedy = "write the values themselves into the configuration, as a list"
        raise refused(field, f"is not a list ({shortened(value)})", remedy)
    if len(value) > _MOST_BANDS:
        raise refused(field, f"has more than {_MOST_BANDS} entries", "give those of the model")
    return value


def _numbers(value: object, field: str) -> tuple[float, ...]:
    return tuple(_number(item, field) for item in _flat(_listed(value, field), field))


def _flat(values: Sequence[Any], field: str) -> Iterable[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            raise refused(field, "is a list of lists", "give one number a band")
        yield value


def _number(value: object, field: str) -> float:
    try:
        # YAML reads 1e-4 as text.
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise refused(
            field, f"has {shortened(value)}, which is not a number", "give finite numbers"
        )
    return number


def _whole(value: object, field: str, *, least: int = 1) -> int:
    number = _number(value, field)
    if not number.is_integer() or number < least:
        raise refused(field, f"is {shortened(value)}", f"give a whole number of at least {least}")
    return int(number)
