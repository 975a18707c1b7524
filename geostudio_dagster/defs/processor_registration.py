"""A processor uploaded from Dagster's launchpad: its text, or a file that the platform may read."""

# No `from __future__ import annotations`: Dagster reads these signatures as they are.

from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from geostudio_dagster.defs.resources import InstallationResource
from geostudio_dagster.errors import InvalidRequest
from geostudio_dagster.installation import Installation
from geostudio_dagster.pipeline.processor_uploads import (
    ScriptRefused,
    parse_metadata,
    upload_processor,
)

OWNER = "dagster"


class RegisterProcessorConfig(dg.Config):
    """The script, as text or as the path of a file, and what is to be known of it."""

    name: str = Field(description="The processor's name; a known one gets its next version.")
    text: str | None = Field(default=None, description="The script itself.")
    path: str | None = Field(
        default=None, description="A file in the inbox, or in a folder that scenes may lie in."
    )
    owner: str = Field(
        default=OWNER, description="E-mail address of whom it belongs to; left out, all see it."
    )
    metadata: dict[str, Any] = Field(
        default_factory=dict,
        description="description, processor_parameters, parameters_schema, contract, position, "
        "limits, gpu.",
    )


@dg.op(description="Check a script and register it as a version of its name.")
def register_processor(
    context: dg.OpExecutionContext,
    config: RegisterProcessorConfig,
    installation: InstallationResource,
) -> str:
    """Register the script; its own asset appears in the processors' location within seconds."""
    place = installation.get()
    try:
        file_name, content = _script(place, config)
        record = upload_processor(
            place,
            parse_metadata({**config.metadata, "name": config.name}),
            file_name,
            content,
            owner=config.owner,
            sharable=config.owner == OWNER,
        )
    except ScriptRefused as error:
        report = dg.MetadataValue.json(error.report.model_dump(mode="json"))
        raise dg.Failure(str(error), metadata={"report": report}, allow_retries=False) from error
    except InvalidRequest as error:
        raise dg.Failure(f"Refused: {error}", allow_retries=False) from error
    context.add_output_metadata(
        {
            "processor": record.label,
            "id": record.id,
            "sha256": record.sha256,
            "contract": record.contract,
            "report": dg.MetadataValue.json(record.report),
        }
    )
    return record.id


@dg.job(description="Upload a processor from the launchpad.")
def register_processor_job() -> None:
    """Register one script."""
    register_processor()


def _script(place: Installation, config: RegisterProcessorConfig) -> tuple[str, bytes]:
    if (config.text is None) == (config.path is None):
        raise InvalidRequest("text", "and path are both given, or neither is", "give one of them")
    if config.text is not None:
        return f"{_file_name(config.name)}.py", config.text.encode("utf-8", "surrogatepass")
    path = Path(str(config.path)).resolve()
    settings = place.settings
    if not any(path.is_relative_to(root) for root in (*settings.scene_roots, settings.inbox)):
        raise InvalidRequest(
            "path", f"{path} is in no folder that may be read", f"put it into {settings.inbox}"
        )
    try:
        with path.open("rb") as file:
            return path.name, file.read(settings.processors.max_script_bytes + 1)
    except OSError as error:
        raise InvalidRequest("path", f"cannot be read ({error})", "name a file") from error


def _file_name(name: str) -> str:
    kept = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in name)
    return kept[:80] or "processor"
