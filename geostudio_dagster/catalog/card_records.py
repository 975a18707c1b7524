"""What the catalog hands out about cards of models, tunes and data sources."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

OnboardingKind = Literal["tune", "model"]


@dataclass(frozen=True, slots=True)
class CardRecord:
    """What users see of a model.

    Attributes:
        details: what its owner told: ``description``, ``geoserver_push`` and so on.
        model_id: the registered bundle; None until there is one.
        manifest: that bundle's manifest.
    """

    id: str
    display_name: str
    internal_name: str
    version: int
    latest: bool
    sharable: bool
    status: str
    details: dict[str, Any]
    owner: str
    model_id: str | None
    created_at: datetime
    updated_at: datetime
    manifest: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class TuneRecord:
    """A fine-tuned model that somebody uploaded; ``details`` has its ``train_options``."""

    id: str
    name: str
    description: str
    status: str
    error: str | None
    details: dict[str, Any]
    config_url: str | None
    checkpoint_url: str | None
    owner: str
    model_id: str | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class OnboardingRecord:
    """A tune or a model's card that is to become a registered bundle.

    Attributes:
        generation: how often it was asked for; a new wish starts with no attempts.
        attempts: runs that took this wish up. run_id: the last of them.
        options: ``model_input_data_spec``, ``geoserver_push`` and the like.
        model_id: the bundle that it has already, whose files are used again.
    """

    kind: OnboardingKind
    id: str
    bundle_name: str
    title: str
    description: str
    owner: str
    status: str
    config_url: str | None
    checkpoint_url: str | None
    options: dict[str, Any]
    generation: int
    attempts: int
    run_id: str | None
    model_id: str | None


@dataclass(frozen=True, slots=True)
class SourceRecord:
    """A data source that somebody described; ``for_all`` where an administrator did."""

    id: str
    connector: str
    collection: str
    document: dict[str, Any] = field(default_factory=dict)
    owner: str = ""
    created_at: datetime | None = None
    for_all: bool = False
