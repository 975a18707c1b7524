"""Requests and tasks as a terminal shows them: tables for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape
from rich.table import Table

from geostudio_dagster.terminal import listing, out, print_json

if TYPE_CHECKING:
    from geostudio_dagster.catalog import Catalog, RequestSummary, TaskRecord

_LATEST = 20  # requests that are listed


def show_status(summary: RequestSummary, *, as_json: bool) -> None:
    """How far a request is."""
    document = {
        "id": summary.request.id,
        "status": str(summary.request.status),
        "error": summary.request.error,
        "model": f"{summary.model.name}@{summary.model.version}",
        "tasks": summary.tasks_by_status,
        "steps": summary.steps_by_status,
        "shards": summary.shards_by_status,
        "pixels_done": summary.pixels_done,
        "pixels_total": summary.pixels_total,
    }
    if as_json:
        print_json(document)
        return
    table = Table(show_header=False, box=None)
    for name in ("id", "status", "error", "model"):
        if document[name] is not None:
            table.add_row(name, escape(str(document[name])))
    table.add_row("tasks", _counts(summary.tasks_by_status))
    for process_id, counts in summary.steps_by_status.items():
        table.add_row(f"  {process_id}", _counts(counts))
    table.add_row("shards", _counts(summary.shards_by_status))
    done, total = summary.pixels_done / 1e6, summary.pixels_total / 1e6
    table.add_row("predicted", f"{done:.2f} of {total:.2f} Mpx")
    out.print(table)


def list_requests(catalog: Catalog, *, as_json: bool) -> None:
    """The latest requests, the newest first."""
    models = {model.id: f"{model.name}@{model.version}" for model in catalog.models()}
    requests = [
        {
            "id": request.id,
            "status": str(request.status),
            "tasks": request.n_tasks,
            "model": models.get(request.model_id, request.model_id),
            "name": str(request.spec.get("name", "")),
            "created_at": f"{request.created_at:%Y-%m-%dT%H:%M:%SZ}",
        }
        for request in catalog.requests(limit=_LATEST)
        if request.deleted_at is None
    ]
    if as_json:
        print_json(requests)
        return
    if not requests:
        typer.echo("There is no request yet; submit one with: geostudio-dagster submit")
        return
    shown = ("id", "status", "tasks", "name")
    table = listing(*shown)
    for request in requests:
        table.add_row(*(escape(str(request[name])) for name in shown))
    out.print(table)


def list_tasks(tasks: Sequence[TaskRecord], *, as_json: bool) -> None:
    """Tasks with the step that each has come to, and its error."""
    if as_json:
        print_json([_task_document(task) for task in tasks])
        return
    table = listing("task", "status", "step", "error", whole="task")
    for task in tasks:
        step = next((s for s in task.steps if s.status != "FINISHED"), task.steps[-1])
        table.add_row(task.id, str(task.status), step.process_id, escape(task.error or ""))
    out.print(table)


def _counts(counts: Mapping[str, int]) -> str:
    """What there is of each status, such as ``3 FINISHED, 1 FAILED``."""
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count) or "none"


def _task_document(task: TaskRecord) -> dict[str, Any]:
    return {
        "id": task.id,
        "status": str(task.status),
        "url": task.url,
        "date": task.date,
        "window": task.window,
        "error": task.error,
        "steps": [
            {
                "process_id": step.process_id,
                "status": str(step.status),
                "attempts": step.attempts,
                "started_at": step.started_at,
                "finished_at": step.finished_at,
                "error": step.error,
            }
            for step in task.steps
        ],
    }
