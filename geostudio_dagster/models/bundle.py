"""A bundle: one folder that holds a model and all that is needed to run it rightly.

``bundle.yaml`` describes bands, scaling, normalisation, patches and classes; beside it lie the
weights (and, for TerraTorch, the configuration that the tune was made with).
"""

from __future__ import annotations

import hashlib
import re
from itertools import groupby
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    field_validator,
    model_validator,
)

from geostudio_dagster.errors import InvalidRequest
from geostudio_dagster.models.endpoint import Endpoint
from geostudio_dagster.storage import sha256_of

MANIFEST = "bundle.yaml"
NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$")
_LEAST_CLASSES = 2
_COLOUR = re.compile(r"^#[0-9A-Fa-f]{6}$")

RuntimeName = Literal["torchscript", "torch_export", "terratorch", "onnx", "http"]
Precision = Literal["exact", "auto"]
OnnxEngine = Literal["auto", "onnxruntime", "openvino"]
TaskKind = Literal["segmentation", "regression"]
Output = Literal["classes", "probabilities"]


# PostgreSQL's JSON cannot hold a NUL character.
Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Band(_Strict):
    """One input band.

    The model sees ``(pixel * scale + offset - mean) / std`` in float32. A scene of integers is
    multiplied by ``integer_scale`` first: what makes reflectances of the numbers that they are
    stored as; floating-point scenes hold the reflectances themselves. ``index`` (0-based)
    finds the band in a scene whose bands have no names; where they have, the name decides.
    ``modality`` is the key that a multi-modal model takes the band under, such as ``S1GRD``.
    """

    name: Text = Field(min_length=1, max_length=64)
    modality: Text | None = Field(default=None, min_length=1, max_length=64)
    index: int | None = Field(default=None, ge=0)
    scale: FiniteFloat = 1.0
    integer_scale: FiniteFloat = Field(default=1.0, gt=0)
    offset: FiniteFloat = 0.0
    mean: FiniteFloat = 0.0
    std: FiniteFloat = Field(default=1.0, gt=0)
    rgb: Literal["R", "G", "B"] | None = None

    @field_validator("scale")
    @classmethod
    def _not_zero(cls, value: float) -> float:
        if not value:
            raise ValueError("must not be 0, which would make all pixels the same")
        return value


class ClassDefinition(_Strict):
    """One class of a segmentation: its pixel value, name, colour and opacity."""

    value: Annotated[int, Field(ge=0, le=254)]
    name: Text = Field(min_length=1, max_length=100)
    colour: str
    opacity: float = Field(default=1.0, ge=0, le=1)

    @field_validator("colour")
    @classmethod
    def _hex(cls, value: str) -> str:
        if not _COLOUR.match(value):
            raise ValueError("must look like #1f78b4")
        return value.lower()

    @property
    def rgba(self) -> tuple[int, int, int, int]:
        """Red, green, blue and alpha, 0 to 255."""
        red, green, blue = (int(self.colour[i : i + 2], 16) for i in (1, 3, 5))
        return red, green, blue, round(self.opacity * 255)


class ColourStop(_Strict):
    """One stop of a regression's colour ramp."""

    value: float
    colour: str
    label: Text = ""

    _hex = field_validator("colour")(ClassDefinition._hex.__func__)  # type: ignore[attr-defined]


class PatchSettings(_Strict):
    """The model's input square and how neighbouring squares overlap, in pixels.

    ``trim`` is cut from inner patch edges before blending: at least half the receptive field
    makes tiling exact for convolutional models.
    """

    size: int = Field(default=224, ge=16, le=4096)
    overlap: int = Field(default=32, ge=0)
    trim: int = Field(default=8, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.overlap >= self.size:
            raise ValueError("overlap must be smaller than size")
        if 2 * self.trim > self.overlap:
            raise ValueError("trim must be at most half of overlap, or gaps would open")
        return self


class BundleManifest(_Strict):
    """What ``bundle.yaml`` says."""

    name: str
    title: Text = ""
    description: Text = ""
    runtime: RuntimeName
    weights: str = Field(default="", description="The weights' file; an endpoint has none.")
    config: str | None = None
    files: tuple[str, ...] = Field(
        default=(), description="Further files, such as the external data of an ONNX model."
    )
    endpoint: Endpoint | None = None
    task: TaskKind
    bands: tuple[Band, ...] = Field(min_length=1, max_length=512)
    dates: int = Field(default=1, ge=1, le=64, description="Dates per sample; 1 is single-date.")
    patch: PatchSettings = PatchSettings()
    classes: tuple[ClassDefinition, ...] = ()
    ramp: tuple[ColourStop, ...] = ()
    unit: Text = ""
    output: Output = Field(
        default="classes", description="Of a segmentation: the class, or a band per class."
    )
    nodata: float | None = Field(default=None, description="Input nodata where the scene has none.")
    scale_tags: bool | None = Field(
        default=None,
        description="Whether scale and offset tags of the scene's bands are applied first. "
        "By default they are, except for terratorch, which ignored them when it trained.",
    )
    fill: float = Field(
        default=0.0, description="What the model sees in invalid pixels, normalised."
    )
    precision: Precision | None = Field(
        default=None,
        description="exact is float32, auto is bfloat16 where the machine computes in it. By "
        "default as the installation is set.",
    )
    licence: Text = ""

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not NAME.match(value):
            raise ValueError("use letters, digits, hyphens and underscores, 100 at most")
        return value

    @field_validator("weights", "config")
    @classmethod
    def _inside(cls, value: str | None) -> str | None:
        if value is not None and (Path(value).is_absolute() or ".." in Path(value).parts):
            raise ValueError("must be a file inside the bundle")
        return value

    @field_validator("files")
    @classmethod
    def _all_inside(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            cls._inside(name)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.task == "segmentation":
            values = [item.value for item in self.classes]
            if len(values) < _LEAST_CLASSES or values != list(range(len(values))):
                raise ValueError("segmentation needs classes with values 0, 1, 2, ... in order")
        elif self.classes:
            raise ValueError("regression takes a ramp, not classes")
        elif self.output == "probabilities":
            raise ValueError("output: probabilities is for a segmentation")
        return self

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.runtime == "terratorch" and not self.config:
            raise ValueError("terratorch needs config, the tune's configuration file")
        if (self.runtime == "http") != (self.endpoint is not None):
            raise ValueError("endpoint goes with runtime: http, and with no other")
        if self.endpoint is None:
            if not self.weights:
                raise ValueError("weights must name the model's file")
            return self
        if self.weights or self.config:
            raise ValueError("an endpoint has its own weights; leave out weights and config")
        if self.modalities:
            raise ValueError("an endpoint takes one tensor, not modalities")
        if self.endpoint.payload == "pooling" and (
            self.task != "segmentation" or self.output == "probabilities" or self.dates > 1
        ):
            raise ValueError("a pooling endpoint gives classes of a single date, nothing else")
        return self

    @model_validator(mode="after")
    def _named(self) -> Self:
        names = [(band.modality, band.name) for band in self.bands]
        if len(set(names)) != len(names):
            raise ValueError("band names must differ")
        keys = [key for key, _ in groupby(band.modality for band in self.bands)]
        if keys != [None] and None in keys:
            raise ValueError("either every band has a modality, or none")
        if len(set(keys)) != len(keys):
            raise ValueError("the bands of a modality must stand together")
        return self

    @property
    def modalities(self) -> dict[str, tuple[Band, ...]]:
        """Bands by modality, in order; empty for a model that takes one tensor."""
        groups = groupby(self.bands, key=lambda band: band.modality)
        return {key: tuple(bands) for key, bands in groups if key is not None}

    @property
    def all_files(self) -> tuple[str, ...]:
        """Names of all files of the bundle, the manifest first."""
        named = filter(None, (self.weights, self.config, *self.files))
        return tuple(dict.fromkeys((MANIFEST, *named)))

    @property
    def scaled_by_tags(self) -> bool:
        """Whether a pixel's value is what the scene's scale and offset tags make of it."""
        return self.runtime != "terratorch" if self.scale_tags is None else self.scale_tags

    @property
    def rgb_bands(self) -> tuple[int, int, int] | None:
        """Positions in ``bands`` of red, green and blue, if all three are declared."""
        places = {band.rgb: place for place, band in enumerate(self.bands) if band.rgb}
        if {"R", "G", "B"} <= places.keys():
            return places["R"], places["G"], places["B"]
        return None


class Bundle(BaseModel):
    """A manifest together with its folder and the digest of everything in it."""

    model_config = ConfigDict(frozen=True)

    folder: Path
    manifest: BundleManifest
    digest: str = Field(description="SHA-256 over names and contents of the bundle's files.")

    @property
    def weights_path(self) -> Path:
        """The weights file."""
        return self.folder / self.manifest.weights

    @property
    def config_path(self) -> Path | None:
        """The runtime's configuration file, if it has one."""
        return self.folder / self.manifest.config if self.manifest.config else None


def load_bundle(folder: Path) -> Bundle:
    """Read and check the bundle in ``folder``.

    Raises:
        InvalidRequest: the manifest or a file that it names is missing or wrong.
    """
    path = folder / MANIFEST
    try:
        document = yaml.safe_load(path.read_text("utf-8"))
        manifest = BundleManifest.model_validate(document)
    except (FileNotFoundError, NotADirectoryError):
        raise InvalidRequest(
            "model", f"{folder} has no {MANIFEST}", "point at the folder that holds it"
        ) from None
    except OSError as error:
        raise InvalidRequest(
            "model", f"{path} cannot be read ({error.strerror})", "make it a readable file"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidRequest(
            "model", f"{path} is not readable YAML ({error})", "mend the file"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or MANIFEST
        raise InvalidRequest(
            f"{MANIFEST}: {where}", str(first["msg"]), "mend the manifest"
        ) from error
    for name in manifest.all_files:
        if not (folder / name).is_file():
            raise InvalidRequest("model", f"{folder} lacks {name}", "put the file into the bundle")
    return Bundle(folder=folder, manifest=manifest, digest=_digest(folder, manifest))


def with_probabilities(bundle: Bundle) -> Bundle:
    """The same model, with a band of probabilities per class as its output.

    Raises:
        InvalidRequest: it gives none.
    """
    manifest = bundle.manifest
    if manifest.task != "segmentation" or (
        manifest.endpoint is not None and manifest.endpoint.payload == "pooling"
    ):
        raise InvalidRequest(
            "probabilities", f"model {manifest.name} gives none", "leave the option out"
        )
    return _with_output(bundle, "probabilities")


def as_map(bundle: Bundle) -> Bundle:
    """The same model, with its classes as output: what layers and statistics are made of."""
    return _with_output(bundle, "classes")


def with_patch(bundle: Bundle, size: int) -> Bundle:
    """The same model, for squares of ``size`` pixels."""
    patch = bundle.manifest.patch.model_copy(update={"size": size})
    manifest = bundle.manifest.model_copy(update={"patch": patch})
    return bundle.model_copy(update={"manifest": manifest})


def _with_output(bundle: Bundle, output: Output) -> Bundle:
    manifest = bundle.manifest.model_copy(update={"output": output})
    return bundle.model_copy(update={"manifest": manifest})


def _digest(folder: Path, manifest: BundleManifest) -> str:
    digest = hashlib.sha256()
    for name in sorted(manifest.all_files):
        digest.update(f"{name}\0{sha256_of(folder / name)}\n".encode())
    return digest.hexdigest()
