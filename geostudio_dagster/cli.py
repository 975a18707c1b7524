"""The same verbs for a terminal, and ``predict``, which needs no installation."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape
from rich.table import Table

from geostudio_dagster import __version__
from geostudio_dagster.errors import InvalidRequest
from geostudio_dagster.gateway.command import first_steps, gateway, keys_app
from geostudio_dagster.processor_verbs import app as processors_app
from geostudio_dagster.request_tables import list_requests, list_tasks, show_status
from geostudio_dagster.settings import Settings
from geostudio_dagster.terminal import AsJson, err, opened_installation, out, print_json

if TYPE_CHECKING:
    from geostudio_dagster.prediction.command import Job

app = typer.Typer(
    help="Geospatial model predictions as Dagster assets.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
models_app = typer.Typer(help="Register and list models.", no_args_is_help=True)
app.add_typer(models_app, name="models")
app.add_typer(processors_app, name="processors")
app.add_typer(keys_app, name="keys")

RequestId = Annotated[str, typer.Argument(help="The request's id.")]


@app.command()
def submit(
    request: Annotated[str, typer.Argument(help="A JSON file, or - for standard input.")],
) -> None:
    """Submit a request; prints its id. The running daemon plans and processes it."""
    from geostudio_dagster.planning.admission import admit
    from geostudio_dagster.planning.request import parse_request_json

    with opened_installation() as installation:
        try:
            text = sys.stdin.read() if request == "-" else Path(request).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequest("request", f"cannot be read ({error})", "name a file") from error
        record = admit(
            parse_request_json(text), installation.catalog, installation.settings, owner="cli"
        )
        typer.echo(record.id)


@app.command()
def status(
    request_id: Annotated[
        str, typer.Argument(help="The request's id; without one, the latest requests are listed.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Show how far a request is, or which requests there are."""
    with opened_installation() as installation:
        if not request_id:
            list_requests(installation.catalog, as_json=as_json)
            return
        show_status(installation.catalog.summary(request_id), as_json=as_json)


@app.command()
def tasks(
    request_id: RequestId,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 100,
    skip: Annotated[int, typer.Option(min=0)] = 0,
    as_json: AsJson = False,
) -> None:
    """List a request's tasks with their steps and errors."""
    with opened_installation() as installation:
        request = installation.catalog.request(request_id)
        records = installation.catalog.tasks(request.id, limit=limit, offset=skip)
        list_tasks(records, as_json=as_json)


@app.command()
def cancel(request_id: RequestId) -> None:
    """Stop a request: what waits never runs, what runs is ended."""
    with opened_installation() as installation:
        typer.echo(f"{request_id}: {installation.catalog.cancel(request_id).status}")


@app.command()
def retry(request_id: RequestId) -> None:
    """Run the failed and stopped tasks of a request again, and only those."""
    with opened_installation() as installation:
        count = installation.catalog.retry(request_id)
        typer.echo(f"{request_id}: {count} tasks will run again")


@models_app.command("add")
def models_add(
    folder: Annotated[Path, typer.Argument(help="Folder with bundle.yaml and the weights.")],
) -> None:
    """Register a model; the same bundle twice is the same version."""
    from geostudio_dagster.models.bundle import load_bundle
    from geostudio_dagster.models.registration import prepare_bundle, register_bundle

    with opened_installation() as installation:
        prepare_bundle(installation, load_bundle(folder))
        model = register_bundle(installation, folder, owner="cli")
        typer.echo(f"{model.name}@{model.version} {model.digest[:12]}")


@models_app.command("list")
def models_list(as_json: AsJson = False) -> None:
    """List the registered models."""
    with opened_installation() as installation:
        models = installation.catalog.models()
        if as_json:
            print_json([{"name": m.name, "version": m.version, "digest": m.digest} for m in models])
            return
        table = Table("model", "task", "bands", "digest", box=None)
        for model in models:
            bands = ", ".join(band["name"] for band in model.manifest["bands"])
            name = f"{model.name}@{model.version}"
            table.add_row(name, model.manifest["task"], bands, model.digest[:12])
        out.print(table)


BundleFolder = Annotated[Path, typer.Option(help="Folder with bundle.yaml and the weights.")]
Scenes = Annotated[
    list[str],
    typer.Option(
        "--input",
        help="Path, http(s) URL or s3://bucket/key, read in place. Again for each further band "
        "file or modality, and for each further date, oldest first.",
    ),
]
_MOST = 4096  # of anything that is counted
Side = Annotated[
    int | None, typer.Option(min=1, max=_MOST, help="Side of the model's square, pixels.")
]
Shared = Annotated[int | None, typer.Option(min=0, help="Pixels that neighbours share.")]
Cut = Annotated[int | None, typer.Option(min=0, help="Pixels cut from inner edges.")]
BatchSize = Annotated[int | None, typer.Option(min=1, max=_MOST, help="Patches per forward pass.")]
Workers = Annotated[
    int | None, typer.Option(min=1, max=_MOST, help="Forward passes at the same time.")
]
Threads = Annotated[
    int | None, typer.Option(min=1, max=_MOST, help="Threads of each forward pass.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:1; a GPU if there is one.")]
Engine = Annotated[
    Literal["auto", "onnxruntime", "openvino"] | None,
    typer.Option(help="What runs ONNX models; auto is OpenVINO where it is installed."),
]
Arithmetic = Annotated[
    Literal["exact", "auto"] | None,
    typer.Option(
        help="exact is float32, auto is bfloat16 where the machine computes in it; by default as "
        "the model says, else as GEOSTUDIO_PRECISION does, else exact."
    ),
]
Output = Annotated[
    str, typer.Option(help="The COG to make, a path or s3://bucket/key; replaced if there.")
]
More = Annotated[list[str] | None, typer.Argument(metavar="[SCENE]...", help="Further inputs.")]
Probabilities = Annotated[
    bool, typer.Option("--probabilities", help="A band per class, 0 to 200 for 0 to 100 %.")
]
Calibrate = Annotated[
    bool | None,
    typer.Option(
        help="Measure the best batch size and threads for long work, and keep them in the "
        "data folder. By default where that folder is."
    ),
]
Tuned = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="What may be done to a torch network to make it quicker: some of fold, "
        "channels_last and pack with commas between them, or none; all by default.",
    ),
]
Convert = Annotated[
    bool | None,
    typer.Option(
        help="Keep a network of TerraTorch in the data folder as a program, which loads "
        "without TerraTorch from then on. By default where that folder is."
    ),
]
Quicklook = Annotated[
    str | None, typer.Option(help="A small PNG of the output, a path or s3://bucket/key.png.")
]
Profile = Annotated[
    Path | None, typer.Option(help="Draw the stages' timeline into this .svg or .html file.")
]
ReportAsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]


@app.command()
def predict(
    *,
    model: BundleFolder,
    inputs: Scenes,
    output: Output,
    more: More = None,
    precision: Arithmetic = None,
    batch_size: BatchSize = None,
    workers: Workers = None,
    threads: Threads = None,
    patch: Side = None,
    overlap: Shared = None,
    trim: Cut = None,
    device: Device = None,
    probabilities: Probabilities = False,
    calibrate: Calibrate = None,
    onnx_engine: Engine = None,
    tuning: Tuned = None,
    convert: Convert = None,
    quicklook: Quicklook = None,
    profile: Profile = None,
    as_json: ReportAsJson = False,
) -> None:
    """Predict a scene into a COG with the engine alone, without Dagster."""
    from geostudio_dagster.prediction import PredictOptions, command

    with _failures_told():
        options = PredictOptions(
            device,
            precision,
            batch_size,
            workers,
            threads,
            patch=patch,
            overlap=overlap,
            trim=trim,
            calibrations=command.calibrations(calibrate),
            programs=command.programs(convert),
            profile=profile,
            onnx_engine=command.onnx_engine(onnx_engine),
            tuning=command.tuning(tuning),
        )
        scenes = _in_order(inputs, more or ())
        _run(command.Job(model, scenes, output, options, probabilities, quicklook), as_json)


def _in_order(inputs: Sequence[str], more: Sequence[str]) -> tuple[str, ...]:
    if more and len(inputs) > 1:
        # --input a b --input c d would lose its order.
        raise typer.BadParameter("repeat --input for each scene, or list all after one --input")
    return (*inputs, *more)


@contextmanager
def _failures_told() -> Iterator[None]:
    from geostudio_dagster.prediction.command import CommandFailed

    try:
        yield
    except CommandFailed as failure:
        err.print(f"[bold red]Error[/]: {escape(str(failure))}", highlight=False, soft_wrap=True)
        raise typer.Exit(failure.code) from failure


def _run(job: Job, as_json: bool) -> None:
    from geostudio_dagster.prediction.command import (
        FAILED,
        CommandFailed,
        keep_for_next_time,
        run,
        summary,
    )

    facts = run(job, err)
    try:
        if as_json:
            print_json(facts)
        else:
            typer.echo(summary(facts))
    except OSError as error:
        problem = f"{facts['output']} is complete, but its report can't be printed ({error})."
        raise CommandFailed(problem, FAILED) from error
    keep_for_next_time(job, facts, err)


app.command()(gateway)

Yaml = Annotated[Path, typer.Option(help="Dagster's instance settings.")]
Workspace = Annotated[Path, typer.Option(help="The code locations to load.")]
WebPort = Annotated[int, typer.Option(help="Port of Dagster's UI.")]
GatewayPort = Annotated[int, typer.Option(help="Port of the REST API, maps and layers.")]


@app.command()
def dev(
    dagster_yaml: Yaml = Path("dagster.yaml"),
    workspace: Workspace = Path("workspace.yaml"),
    webserver_port: WebPort = 3000,
    gateway_port: GatewayPort = 8091,
) -> None:
    """Run the webserver, the daemon and the gateway together until Ctrl-C."""
    from geostudio_dagster import services

    with opened_installation() as installation:
        url = f"http://127.0.0.1:{gateway_port}"
        settings = installation.settings.model_copy(update={"gateway_url": url})
        home = services.dagster_home(settings, dagster_yaml)
        how_to_come_in = first_steps(installation.catalog, settings, url)
        out.print("Starting the webserver, the daemon and the gateway ...")
        with services.sole_daemon(settings, workspace) as daemon:
            if daemon is None:
                raise services.ServiceError(
                    f"Another daemon works on {settings.data_folder}; stop it, or set "
                    "GEOSTUDIO_DATA_FOLDER to another folder."
                )
            wanted = [
                services.webserver(workspace, webserver_port),
                daemon,
                services.gateway(gateway_port),
            ]
            with services.running(wanted, settings, home) as processes:
                _tell_where(settings, webserver_port, url, how_to_come_in)
                services.watch(processes, settings)


def _tell_where(
    settings: Settings, webserver_port: int, url: str, how_to_come_in: Sequence[str]
) -> None:
    table = Table(show_header=False, box=None)
    table.add_row("Dagster UI", f"http://127.0.0.1:{webserver_port}")
    table.add_row("GraphQL", f"http://127.0.0.1:{webserver_port}/graphql")
    table.add_row("API, maps and layers", f"{url}/docs")
    table.add_row("Request inbox", str(settings.inbox))
    table.add_row("Logs", str(settings.data_folder / "logs"))
    out.print(table)
    for line in how_to_come_in:
        out.print(line, highlight=False, soft_wrap=True)
    out.print("Ctrl-C stops all of them.")


@app.command()
def demo(
    input_scene: Annotated[
        str, typer.Option("--input", help="A GeoTIFF of your own, path or URL.")
    ] = "",
    model: Annotated[str, typer.Option("--model", help="A bundle folder, or a model's name.")] = "",
    dagster_yaml: Yaml = Path("dagster.yaml"),
    workspace: Workspace = Path("workspace.yaml"),
    gateway_port: GatewayPort = 8091,
) -> None:
    """Do the main job once: register a model, predict on real imagery, show the map."""
    from geostudio_dagster.demo.run import run_demo

    with opened_installation() as installation:
        ok = run_demo(
            installation,
            input_scene=input_scene or None,
            model=model or None,
            dagster_yaml=dagster_yaml,
            workspace=workspace,
            gateway_port=gateway_port,
            console=out,
        )
    raise typer.Exit(0 if ok else 1)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)
