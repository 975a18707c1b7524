"""Users' processors as the catalog hands them out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any


class Position(StrEnum):
    """Where in the pipeline a processor runs."""

    AFTER_POSTPROCESS = "after_postprocess"
    BEFORE_POSTPROCESS = "before_postprocess"


@dataclass(frozen=True, slots=True)
class ProcessorDraft:
    """A checked script that is to be registered.

    Attributes:
        key: where its text lies in storage already.
        parameters: defaults; what a request gives goes on top.
        parameters_schema: JSON Schema that parameters must meet, if there is one.
        contract: ``positional`` or ``flags``.
        limits: what differs from the installation's limits, such as ``{"wall_s": 60}``.
        report: what its validation found.
        sharable: everybody may see it, as with what an administrator installs.
    """

    name: str
    file_name: str
    sha256: str
    size: int
    key: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    parameters_schema: Mapping[str, Any] | None = None
    contract: str = "positional"
    position: Position = Position.AFTER_POSTPROCESS
    limits: Mapping[str, Any] = field(default_factory=dict)
    gpu: bool = False
    report: Mapping[str, Any] = field(default_factory=dict)
    sharable: bool = False


@dataclass(frozen=True, slots=True)
class ProcessorRecord:
    """One version of a registered processor."""

    id: str
    owner: str
    name: str
    version: int
    sha256: str
    size: int
    key: str
    file_name: str
    description: str
    parameters: dict[str, Any]
    parameters_schema: dict[str, Any] | None
    contract: str
    position: Position
    limits: dict[str, Any]
    gpu: bool
    report: dict[str, Any]
    status: str
    sharable: bool
    created_at: datetime
    updated_at: datetime
    deprecated_at: datetime | None
    deleted_at: datetime | None

    @property
    def label(self) -> str:
        """Such as ``cloud-mask@2``."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class PinnedProcessor:
    """One link of a chain: exactly this script, with exactly these parameters.

    ``number`` is its place in the request's chain, from 0.
    """

    number: int
    processor: ProcessorRecord
    parameters: dict[str, Any]
    position: Position
