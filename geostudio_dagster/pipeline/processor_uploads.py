"""Users' scripts become registered processors: checked, stored, versioned."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from geostudio_dagster.catalog import Position, ProcessorDraft, ProcessorRecord
from geostudio_dagster.errors import InvalidRequest
from geostudio_dagster.installation import Installation
from geostudio_dagster.planning.chains import check_parameters_schema
from geostudio_dagster.processors.contract import check_parameters
from geostudio_dagster.processors.script import ValidationReport, check_script

# No request can be called so: ids begin with a letter or a digit.
_FOLDER = "_processors"


class ScriptRefused(InvalidRequest):
    """A script that may not be registered; ``report`` says all that was found."""

    def __init__(self, report: ValidationReport) -> None:
        super().__init__(
            "generic_processor_file", report.problems[0].rstrip("."), "mend it and upload it again"
        )
        self.report = report


def _plain_name(value: str) -> str:
    if not value.isprintable() or value != value.strip():
        raise ValueError("has characters that no name has")
    if "@" in value or "/" in value:
        raise ValueError("has @ or /, which stand before a version and in paths")
    return value


class ProcessorMetadata(BaseModel):
    """What its author says of a script, with GEOStudio's names where it has them."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_plain_name)]
    description: str = Field(default="", max_length=4000)
    processor_parameters: dict[str, Any] = Field(
        default_factory=dict, description="Defaults; a request's own go on top."
    )
    parameters_schema: dict[str, Any] | None = Field(
        default=None, description="JSON Schema of the parameters."
    )
    contract: Literal["positional", "flags"] | None = Field(
        default=None, description="How it is called; read from the script if left out."
    )
    position: Position = Position.AFTER_POSTPROCESS
    limits: dict[str, float] = Field(
        default_factory=dict, description="Lower limits than the installation's."
    )
    gpu: bool = Field(default=False, description="Whether its pod asks for a GPU.")


def parse_metadata(document: object) -> ProcessorMetadata:
    """Check what an author says of a script.

    Raises:
        InvalidRequest: naming the first field that is wrong.
    """
    if isinstance(document, dict):
        # Clients say "nothing" with null.
        document = {key: value for key, value in document.items() if value is not None}
    try:
        return ProcessorMetadata.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "metadata"
        problem = str(first["msg"]).removeprefix("Value error, ")
        raise InvalidRequest(field, problem, "correct the value") from error


def upload_processor(
    installation: Installation,
    metadata: ProcessorMetadata,
    file_name: str,
    content: bytes,
    *,
    owner: str,
    sharable: bool = False,
) -> ProcessorRecord:
    """Check a script and make it a version of its name; the same again is the same version.

    Raises:
        ScriptRefused: the script itself cannot be taken; it carries the report.
        InvalidRequest: parameters, schema or limits cannot be taken.
    """
    settings = installation.settings.processors
    report = check_script(file_name, content, limits=settings, contract=metadata.contract)
    if not report.ok:
        raise ScriptRefused(report)
    check_parameters(report.contract, metadata.processor_parameters)
    if metadata.parameters_schema is not None:
        check_parameters_schema(metadata.parameters_schema, metadata.processor_parameters)
    settings.limits.lowered(metadata.limits)
    key = f"{_FOLDER}/{report.sha256}.py"
    draft = _draft(metadata, file_name, report, key, sharable)
    installation.storage.commit_bytes(content, key)
    record = installation.catalog.register_processor(draft, owner=owner)
    if not installation.storage.exists(key):  # swept away between the two
        installation.storage.commit_bytes(content, key)
    return record


def _draft(
    metadata: ProcessorMetadata, file_name: str, report: ValidationReport, key: str, sharable: bool
) -> ProcessorDraft:
    return ProcessorDraft(
        name=metadata.name,
        file_name=file_name,
        sha256=report.sha256,
        size=report.size,
        key=key,
        description=metadata.description,
        parameters=json.loads(json.dumps(metadata.processor_parameters)),
        parameters_schema=metadata.parameters_schema,
        contract=report.contract,
        position=metadata.position,
        limits=metadata.limits,
        gpu=metadata.gpu,
        report=report.model_dump(mode="json"),
        sharable=sharable,
    )


def delete_unneeded_scripts(installation: Installation) -> int:
    """Remove the scripts of deleted processors that no live request needs; how many."""
    keys = installation.catalog.unneeded_scripts()
    for key in keys:
        installation.storage.delete(key)
    return len(keys)
