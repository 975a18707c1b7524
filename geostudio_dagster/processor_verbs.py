"""``geostudio-dagster processors``: the verbs that need an installation, beside check and run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from geostudio_dagster.errors import InvalidRequest
from geostudio_dagster.processors.command import app
from geostudio_dagster.terminal import AsJson, err, listing, opened_installation, out, print_json

if TYPE_CHECKING:
    from geostudio_dagster.catalog import ProcessorRecord

__all__ = ["app"]

_OWNER = "cli"

Reference = Annotated[str, typer.Argument(help="The processor's id, name or name@version.")]
Script = Annotated[Path, typer.Argument(help="The Python script.")]
Owner = Annotated[
    str, typer.Option(help="E-mail address of whom it belongs to; left out, everybody sees it.")
]

Name = Annotated[str, typer.Option(help="The script's own name without .py if left out.")]
Called = Annotated[
    Literal["positional", "flags"] | None,
    typer.Option(help="How it is called; found out from the script if left out."),
]
Where = Annotated[
    Literal["after_postprocess", "before_postprocess"],
    typer.Option(help="Where in the pipeline it runs."),
]
Lower = Annotated[str, typer.Option(help='Lower limits as JSON, such as {"wall_s": 60}.')]


@app.command()
def upload(
    script: Script,
    *,
    name: Name = "",
    description: Annotated[str, typer.Option()] = "",
    parameters: Annotated[str, typer.Option(help="Defaults, one JSON object.")] = "{}",
    schema: Annotated[Path | None, typer.Option(help="JSON Schema of the parameters.")] = None,
    contract: Called = None,
    position: Where = "after_postprocess",
    limits: Lower = "{}",
    gpu: Annotated[bool, typer.Option(help="Its pod asks for a GPU.")] = False,
    owner: Owner = "",
    as_json: AsJson = False,
) -> None:
    """Register a script; the same again is the same version, anything else the next one."""
    from geostudio_dagster.pipeline.processor_uploads import parse_metadata, upload_processor

    with opened_installation() as installation:
        metadata = parse_metadata(
            {
                "name": name or script.stem,
                "description": description,
                "processor_parameters": _object("--parameters", parameters),
                "parameters_schema": _object("--schema", _read(schema)) if schema else None,
                "contract": contract,
                "position": position,
                "limits": _object("--limits", limits),
                "gpu": gpu,
            }
        )
        content = _bytes(script, installation.settings.processors.max_script_bytes)
        whose: dict[str, Any] = {"owner": owner or _OWNER, "sharable": not owner}
        record = upload_processor(installation, metadata, script.name, content, **whose)
    _tell(record, as_json)


def _tell(record: ProcessorRecord, as_json: bool) -> None:
    if as_json:
        print_json(_document(record))
        return
    for warning in record.report.get("warnings", ()):
        err.print(f"[yellow]Note[/]: {escape(warning)}", highlight=False, soft_wrap=True)
    typer.echo(f"{record.id} {record.label} {record.contract} {record.sha256[:12]}")


@app.command("list")
def list_processors(
    all_versions: Annotated[bool, typer.Option(help="Not only the newest of each name.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the registered processors, the newest first."""
    with opened_installation() as installation:
        _, records = installation.catalog.processors(all_versions=all_versions)
        if as_json:
            print_json([_document(record) for record in records])
            return
        table = listing("processor", "owner", "contract", "position", "sha256", "id")
        for record in records:
            label = record.label + (" (deprecated)" if record.deprecated_at else "")
            cells = (label, record.owner, record.contract, str(record.position))
            table.add_row(*map(escape, cells), record.sha256[:12], record.id)
        out.print(table)


@app.command()
def show(reference: Reference, as_json: AsJson = False) -> None:
    """Show all that is known of a processor, and the requests that used it last."""
    with opened_installation() as installation:
        record = installation.catalog.processor(reference)
        document = {
            **_document(record),
            "requests": installation.catalog.requests_of_processor(record.id),
        }
        if as_json:
            print_json(document)
            return
        table = Table(show_header=False, box=None)
        for name, value in document.items():
            table.add_row(name, escape(value if isinstance(value, str) else json.dumps(value)))
        out.print(table)


@app.command()
def deprecate(reference: Reference) -> None:
    """Offer a version no more; who names its id or version still gets it."""
    with opened_installation() as installation:
        record = installation.catalog.processor(reference)
        installation.catalog.deprecate_processor(record.id)
        typer.echo(f"{record.label} is deprecated")


@app.command()
def delete(reference: Reference) -> None:
    """Take a version away; requests under way still end with it."""
    from geostudio_dagster.pipeline.processor_uploads import delete_unneeded_scripts

    with opened_installation() as installation:
        record = installation.catalog.processor(reference)
        installation.catalog.delete_processor(record.id)
        delete_unneeded_scripts(installation)
        typer.echo(f"{record.label} is deleted")


def _document(record: ProcessorRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "name": record.name,
        "version": record.version,
        "owner": record.owner,
        "status": record.status,
        "sha256": record.sha256,
        "size": record.size,
        "description": record.description,
        "parameters": record.parameters,
        "parameters_schema": record.parameters_schema,
        "contract": record.contract,
        "position": str(record.position),
        "limits": record.limits,
        "gpu": record.gpu,
        "created_at": record.created_at.isoformat(),
        "deprecated": record.deprecated_at is not None,
        "report": record.report,
    }


def _object(field: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(field, f"is not JSON ({error})", "give one JSON object") from error
    if not isinstance(value, dict):
        raise InvalidRequest(field, "is not a JSON object", 'give one such as {"threshold": 80}')
    return value


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest("--schema", f"cannot be read ({error})", "name a file") from error


def _bytes(path: Path, largest: int) -> bytes:
    """The script, and of one that is too large no more than shows that."""
    try:
        with path.open("rb") as file:
            return file.read(largest + 1)
    except OSError as error:
        raise InvalidRequest("script", f"cannot be read ({error})", "name a file") from error
