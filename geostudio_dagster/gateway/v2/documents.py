"""Requests, tasks and layers as documents: what GEOStudio's clients read, and a little more."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from geostudio_dagster.catalog import RequestStatus, StepStatus
from geostudio_dagster.catalog.states import EARLY_PROCESSOR, LIVE_REQUESTS, PROCESSOR
from geostudio_dagster.gateway.grants import link_life
from geostudio_dagster.gateway.times import api_time
from geostudio_dagster.publish.sld import style_document
from geostudio_dagster.signing import GRANT, request_scope

if TYPE_CHECKING:
    from geostudio_dagster.catalog import LayerRecord, RequestRecord, StepRecord, TaskRecord
    from geostudio_dagster.catalog.records import ShownLayer
    from geostudio_dagster.gateway.place import GatewayPlace

Document = dict[str, Any]
Counts = Mapping[StepStatus, int]
PLANNER = "inference-planner"
_KEPT_STANDINGS = 10_000
# Which of our layers shows the file that a client names.
_LAYER_OF = {
    "model_input_original_image_rgb": "input_rgb",
    "model_output_image": "pred",
    "model_output_image_masked": "pred",
}
_OWN_NAMES = {EARLY_PROCESSOR: PROCESSOR}


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a request is: steps and tasks by status, and its layers."""

    steps: Counts
    tasks: Counts
    layers: Sequence[ShownLayer]


class Standings:
    """How far requests are; of those that are over it is remembered, until they change."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], Standing] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, place: GatewayPlace, records: Sequence[RequestRecord]) -> dict[str, Standing]:
        """How far each of the requests is."""
        with self._lock:
            found = {
                record.id: self._known[_version(record)]
                for record in records
                if _version(record) in self._known
            }
        missing = [record for record in records if record.id not in found]
        planned = [record.id for record in missing if record.n_tasks]
        figures = place.catalog.figures_of_requests(planned)
        layers = place.catalog.layers_of_requests(planned)
        for record in missing:
            found[record.id] = Standing(
                *figures.get(record.id, ({}, {})), layers.get(record.id, ())
            )
        with self._lock:
            for record in missing:
                if record.status not in LIVE_REQUESTS:
                    self._known[_version(record)] = found[record.id]
            while len(self._known) > _KEPT_STANDINGS:
                self._known.popitem(last=False)
        return found


def _version(record: RequestRecord) -> tuple[str, str]:
    return record.id, record.updated_at.isoformat()


def inference_documents(
    place: GatewayPlace, standings: Standings, records: Sequence[RequestRecord]
) -> list[Document]:
    """Many requests as their owners read them."""
    found = standings.of(place, records)
    return [_inference_document(place, record, found[record.id]) for record in records]


def _inference_document(
    place: GatewayPlace,
    record: RequestRecord,
    standing: Standing,
) -> Document:
    spec = record.spec
    client: Document = spec.get("client") or {}
    planning = planning_status(record)
    steps = standing.steps
    pushes = client.get("geoserver_push") or ()
    return {
        "spatial_domain": spatial_domain(spec),
        "temporal_domain": client.get("temporal_domain") or spec.get("temporal_domain") or [],
        "fine_tuning_id": client.get("fine_tuning_id"),
        "generic_processor": client.get("generic_processor"),
        "maxcc": client.get("maxcc", 100),
        "model_display_name": client.get("model_display_name"),
        "description": spec.get("description") or None,
        "location": spec.get("location") or None,
        "geoserver_layers": geoserver_layers(standing.layers, pushes)
        or client.get("geoserver_layers"),
        "demo": client.get("demo"),
        "model_id": record.card_id or record.model_id,
        "inference_output": client.get("inference_output"),
        "generic_processor_id": client.get("generic_processor_id"),
        "id": record.id,
        "active": True,
        "created_by": record.owner,
        "created_at": api_time(record.created_at),
        "updated_at": api_time(record.updated_at),
        "status": record.status.value,
        "tasks_count_total": sum(steps.values()) + 1,
        "tasks_count_success": _count(steps, planning, StepStatus.FINISHED),
        "tasks_count_failed": _count(steps, planning, StepStatus.FAILED),
        "tasks_count_stopped": _count(steps, planning, StepStatus.STOPPED),
        "tasks_count_waiting": _count(steps, planning, StepStatus.WAITING, StepStatus.READY),
        "name": spec.get("name") or None,
        "error": record.error,
        "priority": record.priority,
        "finished_at": api_time(record.finished_at) if record.finished_at else None,
        "tasks_total": record.n_tasks,
        "tasks_by_status": {status.value: count for status, count in standing.tasks.items()},
        "estimate": record.estimate,
        "map_url": map_address(place, record.id),
        **({"warnings": client["warnings"]} if "warnings" in client else {}),
    }


def spatial_domain(spec: Mapping[str, Any]) -> Document:
    """Where, in the order of GEOStudio's fields."""
    domain = spec["spatial_domain"]
    return {name: domain.get(name) or [] for name in ("bbox", "polygons", "tiles", "urls")}


def _count(steps: Counts, planning: StepStatus, *statuses: StepStatus) -> int:
    return sum(steps.get(status, 0) for status in statuses) + (planning in statuses)


def planning_status(record: RequestRecord) -> StepStatus:
    """How the planning of a request stands, which clients see as its first step."""
    if record.n_tasks:
        return StepStatus.FINISHED
    if record.status == RequestStatus.FAILED:
        return StepStatus.FAILED
    if record.status == RequestStatus.STOPPED or record.cancel_requested:
        return StepStatus.STOPPED
    return StepStatus.READY


def map_address(place: GatewayPlace, request_id: str) -> str:
    """The request's map page, for a browser without a key."""
    address = f"{place.settings.gateway_url.rstrip('/')}/maps/{request_id}"
    grant = page_grant(place, request_id)
    return f"{address}?{grant}" if grant else address


def page_grant(place: GatewayPlace, request_id: str) -> str:
    """The query that opens a request's pages and files to who has the link."""
    if place.settings.gateway.auth == "off":
        return ""
    return f"{GRANT}={place.signer.sign(request_scope(request_id), link_life(place))}"


def geoserver_layers(
    layers: Sequence[LayerRecord | ShownLayer], pushes: Sequence[Mapping[str, Any]] = ()
) -> Document | None:
    """The published layers with their styles and the box of each; None before there are any.

    Args:
        layers: as they were published, the lowest first.
        pushes: what the client asked for by file; its names and visibility are kept.
    """
    if not layers:
        return None
    asked = {_LAYER_OF.get(str(push.get("filepath_key"))): push for push in pushes}
    return {
        "predicted_layers": [
            {
                "uri": layer.uri,
                "display_name": asked.get(layer.name, {}).get("display_name") or layer.title,
                "sld_body": sld_body(layer),
                "z_index": place,
                "visible_by_default": str(
                    asked.get(layer.name, {}).get("visible_by_default", True)
                ),
            }
            for place, layer in enumerate(layers)
        ],
        "bbox_pred": [list(layer.bounds) for layer in layers],
    }


def sld_body(layer: LayerRecord | ShownLayer) -> str:
    """The layer's style as an SLD document."""
    return _sld(json.dumps(layer.style), f"{layer.request_id}-{layer.name}", layer.title)


def layer_document(place: GatewayPlace, layer: LayerRecord, number: int, base: str) -> Document:
    """A layer with the addresses of its tiles or features, for browsers without a key."""
    address = f"{base}/layers/{layer.request_id}/{quote(layer.name, safe='')}"
    grant = page_grant(place, layer.request_id)
    query = f"?{grant}" if grant else ""
    vector = layer.kind == "vector"
    return {
        "name": layer.name,
        "title": layer.title,
        "kind": layer.kind,
        "uri": layer.uri,
        "bounds": list(layer.bounds),
        "z_index": number,
        "sld_body": sld_body(layer),
        "style": layer.style,
        "granules": len(layer.granules),
        "published_at": layer.published_at,
        "tilejson": None if vector else f"{address}/tilejson.json{query}",
        "tiles": [] if vector else [f"{address}/tiles/{{z}}/{{x}}/{{y}}.png{query}"],
        "features": f"{address}/features.geojson{query}" if vector else None,
    }


@lru_cache(maxsize=2000)
def _sld(style: str, layer_name: str, title: str) -> str:
    return style_document(json.loads(style), layer_name, title)


def task_document(task: TaskRecord) -> Document:
    """A task with its steps."""
    return {
        "inference_id": task.request_id,
        "task_id": task.id,
        "inference_folder": task.request_id,
        "status": task.status.value,
        "pipeline_steps": [_step_document(step) for step in task.steps],
        "url": task.url,
        "date": task.date,
        "error": task.error,
    }


def _step_document(step: StepRecord) -> Document:
    document: Document = {
        "status": step.status.value,
        "process_id": _OWN_NAMES.get(step.process_id, step.process_id),
        "step_number": step.number,
    }
    if step.started_at:
        document["start_time"] = api_time(step.started_at)
    if step.finished_at:
        document["end_time"] = api_time(step.finished_at)
    if step.attempts:
        document["attempts"] = step.attempts
    if step.error:
        document |= {"error": step.error, "error_code": step.error_code}
    return document


def planning_document(record: RequestRecord) -> Document:
    """The planning of a request as the task that clients know."""
    status = planning_status(record)
    step: Document = {"status": status.value, "process_id": PLANNER, "step_number": 0}
    if status != StepStatus.READY:
        step["start_time"] = api_time(record.created_at)
    if status == StepStatus.FAILED:
        step["error"] = record.error
    return {
        "inference_id": record.id,
        "task_id": f"{record.id}-task_planning",
        "inference_folder": record.id,
        "status": status.value,
        "pipeline_steps": [step],
        "url": None,
        "date": None,
        "error": record.error if status == StepStatus.FAILED else None,
    }


def task_detail(task: TaskRecord) -> Document:
    """A task with what is known of its scene."""
    return task_document(task) | {
        "pixels": task.pixels,
        "scene_size": list(task.scene_size) if task.scene_size else None,
        "window": list(task.window) if task.window else None,
        "footprint": task.footprint,
    }


def features(tasks: Iterator[TaskRecord]) -> Iterator[Document]:
    """Tasks as GeoJSON features (EPSG:4326), with how they stand."""
    for task in tasks:
        yield {
            "type": "Feature",
            "id": task.id,
            "geometry": task.footprint,
            "properties": {
                "inference_id": task.request_id,
                "task_id": task.id,
                "date": task.date,
                "status": task.status.value,
                "error": task.error,
            },
        }
