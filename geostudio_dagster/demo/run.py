"""``make demo``: the main job once, through the daemon and the run queue, as in production."""

from __future__ import annotations

import filecmp
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from geostudio_dagster import services
from geostudio_dagster.catalog import ModelRecord, RequestRecord
from geostudio_dagster.demo.requests import demo_model, demo_requests, request_for
from geostudio_dagster.errors import InvalidRequest
from geostudio_dagster.installation import Installation
from geostudio_dagster.models.registration import register_bundle
from geostudio_dagster.planning.admission import admit
from geostudio_dagster.signing import map_link

_POLL_S = 0.5
_OVER = {"COMPLETED", "COMPLETED_WITH_ERRORS", "FAILED", "STOPPED"}


def run_demo(
    installation: Installation,
    *,
    input_scene: str | None,
    model: str | None,
    dagster_yaml: Path,
    workspace: Path,
    gateway_port: int,
    console: Console,
) -> bool:
    """Register, submit, wait, show. True when every request completed.

    In a terminal the map stays served until Ctrl-C.
    """
    installation = _at_port(installation, gateway_port)
    console.print("[bold]1[/] Registering the model")
    record = _model(installation, model)
    console.print(f"  {record.name}@{record.version}, digest {record.digest[:12]}")
    console.print("[bold]2[/] Submitting")
    requests = _submit(installation, input_scene, record)
    for request in requests:
        console.print(f"  {request.id}  {request.spec['name']}")
    console.print("[bold]3[/] Processing in Dagster")
    with ExitStack() as stack:
        if any(request.status not in _OVER for request in requests):
            processes = stack.enter_context(_daemon(installation, dagster_yaml, workspace))
            _wait(installation, requests, processes, console)
        else:
            console.print("  all of it was done before; nothing is computed again")
        requests = [installation.catalog.request(request.id) for request in requests]
        console.print("[bold]4[/] Results")
        for request in requests:
            _show(installation, request, console)
        _serve(installation, dagster_yaml, gateway_port, requests, console)
    return all(request.status == "COMPLETED" for request in requests)


def _at_port(installation: Installation, gateway_port: int) -> Installation:
    """The installation as this terminal shows it: maps at the port that was asked for."""
    url = f"http://127.0.0.1:{gateway_port}"
    settings = installation.settings.model_copy(update={"gateway_url": url})
    return Installation(settings, installation.catalog, installation.storage)


def _within_reach(installation: Installation, input_scene: str) -> Path | str:
    """The scene under a name that any daemon of this installation may read.

    A file is linked (or, from another disk, copied) into the scene folder.
    """
    if "://" in input_scene:
        return input_scene
    path = Path(input_scene).expanduser().resolve()
    if not path.is_file():
        raise InvalidRequest("--input", f"there is no file {path}", "name a GeoTIFF")
    if any(path.is_relative_to(root) for root in installation.settings.scene_roots):
        return path
    target = installation.settings.data_folder / "scenes" / "demo" / path.name
    if target.exists() and filecmp.cmp(path, target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(path)
    except OSError:
        shutil.copy2(path, target)
    return target


def _model(installation: Installation, model: str | None) -> ModelRecord:
    if model is None:
        folder = demo_model(installation.settings.data_folder)
    elif Path(model).is_dir():
        folder = Path(model)
    else:
        return installation.catalog.model(model)
    return register_bundle(installation, folder, owner="demo")


def _submit(
    installation: Installation, input_scene: str | None, model: ModelRecord
) -> list[RequestRecord]:
    reference = f"{model.name}@{model.version}"
    if input_scene is None:
        documents = demo_requests(installation.settings.data_folder, reference, model.digest)
    else:
        scene = _within_reach(installation, input_scene)
        documents = [request_for(scene, reference, model.digest, name=Path(input_scene).name)]
    return [
        admit(document, installation.catalog, installation.settings, owner="demo")
        for document in documents
    ]


@contextmanager
def _daemon(
    installation: Installation, dagster_yaml: Path, workspace: Path
) -> Iterator[services.Processes]:
    """The daemon for the duration of the demo; none where one is working here already."""
    settings = installation.settings
    home = services.dagster_home(settings, dagster_yaml)
    with (
        services.sole_daemon(settings, workspace) as daemon,
        services.running([daemon] if daemon else [], settings, home) as processes,
    ):
        yield processes


def _wait(
    installation: Installation,
    requests: Sequence[RequestRecord],
    processes: services.Processes,
    console: Console,
) -> None:
    """Show progress until all requests are over.

    Raises:
        ServiceError: the daemon ended by itself; nobody would ever finish them.
    """
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bars = {
            request.id: progress.add_task(request.spec["name"] or request.id, total=None, state="")
            for request in requests
        }
        while bars:
            for request_id, bar in list(bars.items()):
                if _update(installation, request_id, progress, bar):
                    del bars[request_id]
            services.check_alive(processes, installation.settings)
            time.sleep(_POLL_S)


def _update(installation: Installation, request_id: str, progress: Progress, bar: TaskID) -> bool:
    summary = installation.catalog.summary(request_id)
    status = summary.request.status
    total = sum(sum(counts.values()) for counts in summary.steps_by_status.values())
    done = sum(counts.get("FINISHED", 0) for counts in summary.steps_by_status.values())
    mpx = f"{(summary.pixels_done or 0) / 1e6:.1f} of {(summary.pixels_total or 0) / 1e6:.1f} Mpx"
    tasks = f"{summary.request.n_tasks} tasks" if summary.request.n_tasks else "planning"
    progress.update(bar, total=total or None, completed=done, state=f"{status} {tasks}, {mpx}")
    return status in _OVER


def _show(installation: Installation, request: RequestRecord, console: Console) -> None:
    rows = [("request", f"{request.spec['name']}: [bold]{request.status}[/]")]
    if request.error:
        rows.append(("error", request.error))
    tasks = installation.catalog.tasks(request.id, limit=1)
    artifacts = {a.name: a for a in installation.catalog.artifacts(request.id)}
    if tasks:
        artifacts |= {a.name: a for a in installation.catalog.artifacts(tasks[0].id)}
    of_first = f" ({tasks[0].id.rsplit('-', 1)[1]})" if request.n_tasks > 1 else ""
    if "mosaic-0" in artifacts:
        rows.append(("whole scene", str(installation.path_of(artifacts["mosaic-0"]))))
    for name, title in (
        ("prediction", "prediction COG"),
        ("stac", "STAC item"),
        ("archive", "zip"),
    ):
        if name in artifacts:
            rows.append((title + of_first, str(installation.path_of(artifacts[name]))))
    rows += [("layer", layer.uri) for layer in installation.catalog.layers(request.id)]
    rows.append(("map", _map(installation, request)))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        # One line each, however long: a path that is cut or wrapped can't be copied.
        console.print(f"  {name:<{width}}  {value}", soft_wrap=True, highlight=False)
    console.print()


def _serve(
    installation: Installation,
    dagster_yaml: Path,
    port: int,
    requests: Sequence[RequestRecord],
    console: Console,
) -> None:
    """Serve the map while somebody is there to look at it."""
    if not console.is_terminal:
        console.print("  `make dev` serves the map page.")
        return
    home = services.dagster_home(installation.settings, dagster_yaml)
    with services.running([services.gateway(port)], installation.settings, home) as processes:
        console.print(f"\n[bold]5[/] The map is served now: {_map(installation, requests[0])}")
        console.print("  Ctrl-C ends the demo.")
        services.watch(processes, installation.settings)


def _map(installation: Installation, request: RequestRecord) -> str:
    return map_link(installation.settings, request.id)
