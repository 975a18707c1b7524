"""Tunes: uploaded, listed, shown, changed, deleted, downloaded, and tried out."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

from fastapi import APIRouter, HTTPException, Path, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response

from geostudio_dagster.catalog.card_records import TuneRecord
from geostudio_dagster.catalog.cards import SANDBOX
from geostudio_dagster.catalog.tunes import FINISHED, TuneFilter
from geostudio_dagster.errors import Conflict, InvalidRequest, NotFound
from geostudio_dagster.gateway.grants import Guest, link_life
from geostudio_dagster.gateway.paging import Envelope, Page
from geostudio_dagster.gateway.place import GatewayPlace, Place
from geostudio_dagster.gateway.principal import Caller, Principal
from geostudio_dagster.gateway.problems import responses
from geostudio_dagster.gateway.v2 import documents
from geostudio_dagster.gateway.v2.inference_schemas import InferenceGetResponse
from geostudio_dagster.gateway.v2.masking import check_options
from geostudio_dagster.gateway.v2.models import BUILT_OF, check_rebuild
from geostudio_dagster.gateway.v2.submission import submit
from geostudio_dagster.gateway.v2.tune_schemas import (
    OPTIONS,
    TryOutTuneInput,
    TunedModelMlflowMetrics,
    TuneDownloadOut,
    TuneFile,
    TuneOptions,
    TuneOut,
    TuneStatusOut,
    TuneUpdateIn,
    UploadStarted,
    UploadTuneInput,
    checked_options,
    status_document,
    tune_document,
)
from geostudio_dagster.models.bundle import Bundle, BundleManifest
from geostudio_dagster.models.tune_options import read_options
from geostudio_dagster.pipeline.onboarding import CHECKPOINT_FIELD, CONFIG_FIELD, check_source
from geostudio_dagster.signing import GRANT

router = APIRouter(tags=["tunes"])
open_router = APIRouter(tags=["tunes"])

TuneId = Annotated[str, Path(max_length=100)]
_BINARY = "application/octet-stream"
_standings = documents.Standings()


@router.post("/upload-completed-tunes", operation_id="upload_completed_tune", status_code=201)
def upload(wish: UploadTuneInput, caller: Caller, place: Place) -> UploadStarted:
    """Take a tune in; its files are fetched, checked and tried at once, in the background."""
    given = wish.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    options = checked_options({name: given[name] for name in OPTIONS if name in given})
    read_options(options)
    check_options(options.get("post_processing") or {}, "post_processing")
    for field in (CONFIG_FIELD, CHECKPOINT_FIELD):
        check_source(place.installation, given[field], caller.email, field)
    tune = place.catalog.create_tune(
        caller.viewer,
        wish.name,
        wish.description,
        config_url=wish.tune_config_url,
        checkpoint_url=wish.tune_checkpoint_url,
        details={"train_options": options},
    )
    place.launcher.onboarding(place.catalog.onboarding("tune", tune.id))
    return UploadStarted(tune_id=tune.id)


@router.get("/tunes", operation_id="list_tunes")
def list_tunes(
    *,
    page: Page,
    caller: Caller,
    place: Place,
    name: Annotated[str | None, Query(max_length=200)] = None,
    status: Annotated[str | None, Query(max_length=50)] = None,
    shared: bool | None = None,
) -> Envelope[TuneOut]:
    """The caller's tunes and those that a group shares with them."""
    total, tunes = place.catalog.tunes(caller.viewer, TuneFilter(name, status, shared), page)
    manifests = _manifests(place, tunes)
    results = [
        TuneOut.model_validate(tune_document(tune, caller.email, manifests.get(tune.id)))
        for tune in tunes
    ]
    return Envelope[TuneOut].of(total, results)


@router.get("/tunes/{tune_id}", operation_id="get_tune", responses=responses(404))
def get(tune_id: TuneId, request: Request, caller: Caller, place: Place) -> TuneStatusOut:
    """A tune, and how far it is: Pending, In_progress, Finished or Failed."""
    return _document(place, caller, request, place.catalog.tune(caller.viewer, tune_id))


@router.patch("/tunes/{tune_id}", operation_id="update_tune", responses=responses(404, 409))
def update(
    tune_id: TuneId, change: TuneUpdateIn, request: Request, caller: Caller, place: Place
) -> TuneStatusOut:
    """Change what is given. New bands or styles make the tune's bundle anew."""
    tune = place.catalog.tune(caller.viewer, tune_id)
    known = tune.details.get("train_options") or {}
    given = change.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    changed = given.pop("train_options", {})
    with _in_options():
        check_options(changed.get("post_processing") or {}, "post_processing")
    options = checked_options({**known, **changed})
    rebuilt = any(options.get(name) != known.get(name) for name in BUILT_OF)
    if rebuilt:
        if tune.status not in (FINISHED, "Failed"):
            raise Conflict(f"The tune is {tune.status}; change it when that is over.")
        with _in_options():
            read_options(options)
            check_rebuild(place, tune.model_id, options, "tune", tune.id)
    tune = place.catalog.update_tune(caller.viewer, tune.id, given, {"train_options": options})
    if rebuilt:
        place.launcher.onboarding(place.catalog.request_onboarding(caller.viewer, "tune", tune.id))
        tune = place.catalog.tune(caller.viewer, tune.id)
    return _document(place, caller, request, tune)


@router.delete(
    "/tunes/{tune_id}", operation_id="delete_tune", status_code=204, responses=responses(404)
)
def delete(tune_id: TuneId, caller: Caller, place: Place) -> None:
    """Take a tune away; requests that are under way with it are not disturbed."""
    place.catalog.delete_tune(caller.viewer, tune_id)


@router.get(
    "/tunes/{tune_id}/download", operation_id="download_tune", responses=responses(404, 409)
)
def download(tune_id: TuneId, request: Request, caller: Caller, place: Place) -> TuneDownloadOut:
    """Links to the tune's configuration and checkpoint."""
    tune = place.catalog.tune(caller.viewer, tune_id)
    _bundle(place, tune)
    return TuneDownloadOut(
        id=tune.id,
        name=tune.name,
        description=tune.description,
        config_url=_link(place, request, tune, "config"),
        checkpoint_url=_link(place, request, tune, "checkpoint"),
        expires_at=dt.datetime.now(dt.UTC) + link_life(place),
    )


@open_router.api_route(
    "/tunes/{tune_id}/files/{which}",
    methods=["GET", "HEAD"],
    operation_id="download_tune_file",
    responses=responses(403, 404, 409),
    response_class=FileResponse,
)
def file(tune_id: TuneId, which: TuneFile, guest: Guest, place: Place) -> FileResponse:
    """One of a tune's files, by a signed link or with a key; ranges of it, too."""
    if guest.principal is not None:
        tune = place.catalog.tune(guest.principal.viewer, tune_id)
    else:
        guest.may(_scope(tune_id))
        tune = place.catalog.any_tune(tune_id)
    bundle = _bundle(place, tune)
    path = bundle.config_path if which == "config" else bundle.weights_path
    if path is None or not path.is_file():
        raise NotFound(f"There is no {which} of this tune any more.")
    return FileResponse(
        path,
        media_type=_BINARY,
        filename=path.name,
        content_disposition_type="attachment",
        headers={"Cache-Control": "private, no-cache"},
    )


@router.get("/tunes/{tune_id}/metrics", operation_id="tune_metrics", responses=responses(404))
def metrics(tune_id: TuneId, caller: Caller, place: Place) -> TunedModelMlflowMetrics:
    """What was measured in training: nothing that is known here."""
    tune = place.catalog.tune(caller.viewer, tune_id)
    return TunedModelMlflowMetrics(id=tune.id, status=tune.status)


@router.post(
    "/tunes/{tune_id}/try-out",
    operation_id="try_out_tune",
    response_model=InferenceGetResponse,
    responses=responses(404, 409, 429),
)
def try_out(tune_id: TuneId, wish: TryOutTuneInput, caller: Caller, place: Place) -> Response:
    """Submit a request with this tune."""
    tune = place.catalog.tune(caller.viewer, tune_id)
    options = tune.details.get("train_options") or {}
    told = TuneOptions.model_validate(options).model_dump(mode="json", exclude_none=True)
    told = {name: value for name, value in told.items() if getattr(wish, name) is None}
    given = wish.model_dump(mode="json", exclude_unset=True) | told
    given |= {"fine_tuning_id": tune.id, "model_display_name": SANDBOX, "model_id": None}
    given["description"] = given.get("description") or "try-out"
    record = submit(place, caller, TryOutTuneInput.model_validate(given), brought=told.keys())
    return JSONResponse(documents.inference_documents(place, _standings, [record])[0])


@contextmanager
def _in_options() -> Iterator[None]:
    """Name the field where it stands in the body of a change."""
    try:
        yield
    except InvalidRequest as error:
        field = f"train_options.{error.field}"
        raise InvalidRequest(field, error.problem, error.remedy) from error


def _bundle(place: GatewayPlace, tune: TuneRecord) -> Bundle:
    """The bundle of a tune.

    Raises:
        HTTPException: 409, there is none yet.
    """
    if tune.model_id is None:
        raise HTTPException(409, {"msg": f"The tune is {tune.status}; it has no files here yet."})
    try:
        return place.installation.bundle(place.catalog.model(tune.model_id))
    except InvalidRequest as error:
        raise NotFound("The files of this tune are not here any more.") from error


def _document(
    place: GatewayPlace, caller: Principal, request: Request, tune: TuneRecord
) -> TuneStatusOut:
    link = None if tune.model_id is None else _link(place, request, tune, "config")
    manifest = _manifests(place, [tune]).get(tune.id)
    return status_document(tune, caller.email, manifest, link)


def _manifests(place: GatewayPlace, tunes: Sequence[TuneRecord]) -> dict[str, BundleManifest]:
    """The manifests of the tunes that have a bundle, by the tunes' ids."""
    found = place.catalog.manifests({tune.model_id for tune in tunes if tune.model_id})
    return {
        tune.id: BundleManifest.model_validate(found[tune.model_id])
        for tune in tunes
        if tune.model_id in found
    }


def _scope(tune_id: str) -> str:
    return f"tune:{tune_id}"


def _link(place: GatewayPlace, request: Request, tune: TuneRecord, which: TuneFile) -> str:
    base = str(request.base_url).rstrip("/")
    token = place.signer.sign(_scope(tune.id), link_life(place))
    return f"{base}/v2/tunes/{tune.id}/files/{which}?{GRANT}={token}"
