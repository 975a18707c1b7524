"""``geostudio-dagster processors``: an author checks and tries a script as the platform would."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape

from geostudio_dagster.errors import GeostudioError, InvalidRequest

if TYPE_CHECKING:
    from geostudio_dagster.processors.outputs import CollectedOutput
    from geostudio_dagster.processors.run import ScriptResult
    from geostudio_dagster.processors.script import ValidationReport

app = typer.Typer(help="Check and try users' own Python scripts.", no_args_is_help=True)
err = Console(stderr=True)

Script = Annotated[Path, typer.Argument(help="The Python script.", exists=True, dir_okay=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Chosen = Annotated[
    Literal["positional", "flags"] | None,
    typer.Option(help="How the script is called; found out from the script if left out."),
]


@contextmanager
def _told() -> Iterator[None]:
    """What a user can mend is told in one line."""
    try:
        yield
    except GeostudioError as error:
        sentence = " ".join(str(error).split())
        name = f"[bold red]{type(error).__name__}[/]"
        err.print(f"{name}: {escape(sentence)}", highlight=False, soft_wrap=True)
        raise typer.Exit(2 if isinstance(error, InvalidRequest) else 1) from error


@app.command()
def check(script: Script, contract: Chosen = None, as_json: AsJson = False) -> None:
    """Say whether a script can be registered, and how it will be called. Nothing of it runs."""
    with _told():
        report = _checked(script, contract)
        if as_json:
            typer.echo(report.model_dump_json(indent=2))
        else:
            _show(report)
    raise typer.Exit(0 if report.ok else 2)


@app.command()
def run(
    script: Script,
    *,
    input_raster: Annotated[
        Path, typer.Option("--input", help="The raster that it reads.", exists=True, dir_okay=False)
    ],
    parameters: Annotated[str, typer.Option(help="Its parameters, a JSON object.")] = "{}",
    output: Annotated[
        Path | None, typer.Option(help="Folder for what it makes; without it, nothing is kept.")
    ] = None,
    contract: Chosen = None,
    as_json: AsJson = False,
) -> None:
    """Run a script on a raster, isolated and limited as the platform does it."""
    with _told():
        report = _checked(script, contract)
        if not report.ok:
            raise InvalidRequest("script", " ".join(report.problems).rstrip("."), "mend it first")
        if output and output.exists() and any(output.iterdir()):
            raise InvalidRequest("--output", f"{output} is not empty", "name a new folder")
        result, outputs = _run(script, input_raster, _parameters(parameters), report, output)
        if as_json:
            typer.echo(json.dumps(_document(result, outputs), indent=2, default=str))
        else:
            typer.echo(result.log, err=True, nl=False)
            for taken in outputs:
                typer.echo(f"{taken.kind}\t{taken.name}\t{taken.size}")
            if result.reason == "ok" and not outputs:
                err.print("The script left no file in its output folder.")
        result.raise_if_failed()


def _checked(script: Path, contract: Literal["positional", "flags"] | None) -> ValidationReport:
    from geostudio_dagster.processors.script import check_script
    from geostudio_dagster.settings import read_settings

    limits = read_settings().processors
    return check_script(script.name, script.read_bytes(), limits=limits, contract=contract)


def _show(report: ValidationReport) -> None:
    for problem in report.problems:
        typer.echo(f"problem: {problem}")
    for warning in report.warnings:
        typer.echo(f"warning: {warning}")
    if report.ok:
        evidence = f" ({report.contract_evidence[0]})" if report.contract_evidence else ""
        typer.echo(f"ok: {report.name} {report.sha256[:12]}, called by {report.contract}{evidence}")


def _parameters(text: str) -> dict[str, Any]:
    try:
        parameters = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidRequest("--parameters", f"is no JSON ({error})", "quote it") from error
    if parameters is not None and not isinstance(parameters, dict):
        raise InvalidRequest("--parameters", "is no JSON object", "use braces")
    return parameters or {}


def _run(
    script: Path,
    input_raster: Path,
    parameters: dict[str, Any],
    report: ValidationReport,
    output: Path | None,
) -> tuple[ScriptResult, list[CollectedOutput]]:
    from geostudio_dagster.processors.dependencies import ensure_packages
    from geostudio_dagster.processors.outputs import collect
    from geostudio_dagster.processors.run import ScriptJob, run_script
    from geostudio_dagster.processors.sandbox import choose_sandbox
    from geostudio_dagster.settings import read_settings

    settings = read_settings()
    limits = settings.processors.limits
    sandbox = choose_sandbox(settings.processors, hidden=(settings.data_folder,))
    packages = ensure_packages(report.dependencies, settings.processor_root, settings.processors)
    with tempfile.TemporaryDirectory(prefix="geostudio-processor-") as name:
        folder = Path(name)
        job = ScriptJob(
            script=script.absolute(),
            input=input_raster.absolute(),
            folder=folder / "run",
            contract=report.contract,
            parameters=parameters,
            options=report.options,
            packages=packages,
        )
        result = run_script(job, limits, sandbox)
        if result.reason != "ok":
            return result, []
        outputs = collect(result.output, job.input, folder / "collected", limits, sandbox)
        if output:
            output.mkdir(parents=True, exist_ok=True)
            for taken in outputs:
                shutil.copyfile(taken.path, output / taken.name)
    return result, outputs


def _document(result: ScriptResult, outputs: list[CollectedOutput]) -> dict[str, Any]:
    facts = asdict(result)
    del facts["output"]
    files = [{key: value for key, value in asdict(o).items() if key != "path"} for o in outputs]
    return {**facts, "outputs": files}
