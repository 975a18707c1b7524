"""The source of truth for requests, tasks, steps, shards, models and files.

Dagster executes; what is to be done, what was done and what users see is here. Knows nothing
of Dagster, and of the files only their keys.
"""

from geostudio_dagster.catalog.catalog import Catalog
from geostudio_dagster.catalog.processor_records import (
    PinnedProcessor,
    Position,
    ProcessorDraft,
    ProcessorRecord,
)
from geostudio_dagster.catalog.records import (
    ArtifactRecord,
    EventRecord,
    LayerRecord,
    ModelRecord,
    Plan,
    PlannedTask,
    RequestRecord,
    RequestSummary,
    Settlement,
    ShardRecord,
    StepRecord,
    TaskRecord,
)
from geostudio_dagster.catalog.states import RequestStatus, ShardStatus, StepStatus
from geostudio_dagster.catalog.viewer import Viewer

__all__ = [
    "ArtifactRecord",
    "Catalog",
    "EventRecord",
    "LayerRecord",
    "ModelRecord",
    "PinnedProcessor",
    "Plan",
    "PlannedTask",
    "Position",
    "ProcessorDraft",
    "ProcessorRecord",
    "RequestRecord",
    "RequestStatus",
    "RequestSummary",
    "Settlement",
    "ShardRecord",
    "ShardStatus",
    "StepRecord",
    "StepStatus",
    "TaskRecord",
    "Viewer",
]
