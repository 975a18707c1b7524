"""Users' own Python processors: uploaded, listed, shared, taken back."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Annotated, Any
from urllib.parse import urlencode
from uuid import UUID

from fastapi import APIRouter, File, Form, HTTPException, Query, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel

from geostudio_dagster.catalog import ProcessorRecord, Viewer
from geostudio_dagster.errors import NotFound
from geostudio_dagster.gateway.json_bodies import refused_json
from geostudio_dagster.gateway.paging import Envelope, Page
from geostudio_dagster.gateway.place import GatewayPlace, Place
from geostudio_dagster.gateway.principal import Caller
from geostudio_dagster.gateway.problems import ProblemResponse, responses
from geostudio_dagster.gateway.times import ApiTime
from geostudio_dagster.pipeline.processor_uploads import (
    ScriptRefused,
    delete_unneeded_scripts,
    parse_metadata,
    upload_processor,
)
from geostudio_dagster.processor_reloading import reload_soon
from geostudio_dagster.signing import GRANT

router = APIRouter(prefix="/generic-processor", tags=["generic processors"])
open_router = APIRouter(prefix="/generic-processor", tags=["generic processors"])

NONE = "Generic Processor component not found"
NO_FILE = "Generic Processor component file path not found"
LINK_LIFE = timedelta(seconds=28_800)
_TOO_LARGE, _UNPROCESSABLE = 413, 422
_METADATA = ("body", "generic_processor_metadata")


class GenericProcessor(BaseModel):
    """One version of a processor. ``processor_presigned_url`` is given for single ones only."""

    id: UUID
    name: str
    description: str
    processor_parameters: dict[str, Any]
    processor_file_path: str
    processor_presigned_url: str | None
    status: str
    active: bool
    created_by: str
    created_at: ApiTime
    updated_at: ApiTime
    version: int
    sha256: str
    size: int
    contract: str
    position: str
    parameters_schema: dict[str, Any] | None
    limits: dict[str, Any]
    gpu: bool
    deprecated: bool
    warnings: list[str]

    @classmethod
    def of(cls, record: ProcessorRecord, link: str | None = None) -> GenericProcessor:
        """The document of a processor."""
        return cls(
            id=UUID(record.id),
            name=record.name,
            description=record.description,
            processor_parameters=record.parameters,
            processor_file_path=f"{record.id}/{record.file_name}",
            processor_presigned_url=link,
            status=record.status,
            active=record.deleted_at is None,
            created_by=record.owner,
            created_at=record.created_at,
            updated_at=record.updated_at,
            version=record.version,
            sha256=record.sha256,
            size=record.size,
            contract=record.contract,
            position=str(record.position),
            parameters_schema=record.parameters_schema,
            limits=record.limits,
            gpu=record.gpu,
            deprecated=record.deprecated_at is not None,
            warnings=list(record.report.get("warnings", ())),
        )


def find_processor(place: GatewayPlace, reference: str, viewer: Viewer) -> ProcessorRecord:
    """The processor that a client names by id (or by name), if the viewer may see it.

    Raises:
        HTTPException: 404 in the words that clients know.
    """
    try:
        return place.catalog.processor(reference, viewer)
    except NotFound as error:
        raise HTTPException(404, NONE) from error


@router.post(
    "",
    operation_id="create_generic_processor",
    status_code=201,
    response_model=GenericProcessor,
    responses=responses(413),
)
def create_processor(
    *,
    request: Request,
    caller: Caller,
    place: Place,
    generic_processor_file: Annotated[UploadFile, File(description="The script, .py.")],
    generic_processor_metadata: Annotated[
        str | None, Form(description="JSON: name, description, processor_parameters, ...")
    ] = None,
    generic_processor: Annotated[
        str | None, Form(description="The same under the name that the guide has.")
    ] = None,
) -> GenericProcessor | Response:
    """Register a script; a name that is there gets a new version, the same again does not."""
    told = _metadata(generic_processor_metadata, generic_processor)
    refused = refused_json(told.encode(), place.settings.gateway.max_json_depth, _METADATA)
    if refused is not None:
        return refused
    document = _understood(told)
    largest = place.settings.processors.max_script_bytes
    content = generic_processor_file.file.read(largest + 1)
    try:
        record = upload_processor(
            place.installation,
            parse_metadata(document),
            generic_processor_file.filename or "",
            content,
            owner=caller.email,
        )
    except ScriptRefused as refusal:
        code = _TOO_LARGE if len(content) > largest else _UNPROCESSABLE
        return _refused(refusal, code)
    reload_soon(place.installation)
    return GenericProcessor.of(record, _link(request, place, record))


@router.get("", operation_id="list_generic_processors")
def list_processors(
    caller: Caller,
    place: Place,
    page: Page,
    all_versions: Annotated[bool, Query(description="Not only the newest of each name.")] = False,
) -> Envelope[GenericProcessor]:
    """The caller's processors and those shared with the caller's groups."""
    total, records = place.catalog.processors(caller.viewer, page, all_versions=all_versions)
    return Envelope[GenericProcessor].of(total, [GenericProcessor.of(record) for record in records])


@router.get(
    "/{generic_processor_id}", operation_id="get_generic_processor", responses=responses(404)
)
def get_processor(
    generic_processor_id: UUID, request: Request, caller: Caller, place: Place
) -> GenericProcessor:
    """One processor, with a link to its script that works for eight hours."""
    record = find_processor(place, str(generic_processor_id), caller.viewer)
    if not place.storage.exists(record.key):
        raise HTTPException(404, NO_FILE)
    return GenericProcessor.of(record, _link(request, place, record))


@router.get(
    "/{generic_processor_id}/versions",
    operation_id="list_generic_processor_versions",
    responses=responses(404),
)
def list_versions(
    generic_processor_id: UUID, caller: Caller, place: Place
) -> Envelope[GenericProcessor]:
    """All versions of the same name, the newest first."""
    find_processor(place, str(generic_processor_id), caller.viewer)
    records = place.catalog.processor_versions(str(generic_processor_id), caller.viewer)
    return Envelope[GenericProcessor].of(
        len(records), [GenericProcessor.of(record) for record in records]
    )


@router.get(
    "/{generic_processor_id}/report",
    operation_id="get_generic_processor_report",
    responses=responses(404),
)
def get_report(generic_processor_id: UUID, caller: Caller, place: Place) -> dict[str, Any]:
    """What the validation found in the script."""
    return find_processor(place, str(generic_processor_id), caller.viewer).report


@router.post(
    "/{generic_processor_id}/deprecate",
    operation_id="deprecate_generic_processor",
    responses=responses(404),
)
def deprecate_processor(
    generic_processor_id: UUID, caller: Caller, place: Place
) -> GenericProcessor:
    """Offer a version of the caller's no more; requests that name its id still get it."""
    try:
        record = place.catalog.deprecate_processor(str(generic_processor_id), caller.viewer)
    except NotFound as error:
        raise HTTPException(404, NONE) from error
    reload_soon(place.installation)
    return GenericProcessor.of(record)


@router.delete(
    "/{generic_processor_id}",
    operation_id="delete_generic_processor",
    status_code=204,
    responses=responses(404),
)
def delete_processor(generic_processor_id: UUID, caller: Caller, place: Place) -> None:
    """Take a version of the caller's away; requests under way still end with it."""
    try:
        place.catalog.delete_processor(str(generic_processor_id), caller.viewer)
    except NotFound as error:
        raise HTTPException(404, NONE) from error
    delete_unneeded_scripts(place.installation)
    reload_soon(place.installation)


@open_router.get(
    "/{generic_processor_id}/file",
    operation_id="download_generic_processor",
    responses=responses(403, 404),
    response_class=Response,
)
def download_processor(
    generic_processor_id: UUID,
    place: Place,
    grant: Annotated[str, Query(max_length=200, description="From processor_presigned_url.")],
) -> Response:
    """The script, for whoever has a link to it."""
    identifier = str(generic_processor_id)
    if not place.signer.verify(grant, _scope(identifier)):
        raise HTTPException(403, "The link is not valid, or not valid any more.")
    try:
        record = place.catalog.processor(identifier)
        content = place.storage.read_bytes(record.key)
    except NotFound as error:
        raise HTTPException(404, NO_FILE) from error
    headers = {
        "Content-Disposition": f'attachment; filename="{record.file_name}"',
        "ETag": f'"{record.sha256}"',
    }
    # Never shown as a page: a script may hold markup.
    return Response(content, media_type="text/x-python; charset=utf-8", headers=headers)


def _metadata(*fields: str | None) -> str:
    text = next((field for field in fields if field is not None), None)
    if text is None:
        missing = {"type": "missing", "loc": _METADATA, "msg": "Field required"}
        raise RequestValidationError([missing])
    return text


def _understood(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise HTTPException(422, str(error)) from error


def _refused(refusal: ScriptRefused, code: int) -> ProblemResponse:
    problems = refusal.report.problems
    return ProblemResponse(
        {
            "type": "about:blank",
            "title": "The script was refused",
            "status": code,
            "detail": " ".join(problems),
            "errors": [
                {"detail": text, "pointer": "#/generic_processor_file"} for text in problems
            ],
            "report": refusal.report.model_dump(mode="json"),
        },
        status_code=code,
    )


def _scope(processor_id: str) -> str:
    return f"processor:{processor_id}"


def _link(request: Request, place: GatewayPlace, record: ProcessorRecord) -> str:
    grant = urlencode({GRANT: place.signer.sign(_scope(record.id), LINK_LIFE)})
    base = str(request.base_url).rstrip("/")
    return f"{base}/v2/generic-processor/{record.id}/file?{grant}"
