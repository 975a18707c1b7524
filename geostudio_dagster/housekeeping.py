"""What is left over goes: deleted things after their time, expired files, abandoned scratch.

Everything is done in an order in which a kill at any point leaves something that the next round
finds again: what lies elsewhere goes first, the row that names it last. Each round is bounded.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from geostudio_dagster.audit_log import remove_before
from geostudio_dagster.catalog import RequestRecord
from geostudio_dagster.installation import Installation
from geostudio_dagster.models.programs import remove_unused_programs
from geostudio_dagster.models.registration import remove_unused_bundles
from geostudio_dagster.pipeline.model_programs import needed_programs
from geostudio_dagster.pipeline.processor_uploads import delete_unneeded_scripts
from geostudio_dagster.publish.geoserver import GeoServer
from geostudio_dagster.removal import remove_tree

log = logging.getLogger(__name__)

Chore = Callable[[Installation, dt.datetime], Iterator[str]]
_OWN_LAYERS = frozenset({"input_rgb", "pred"})
_SHARES = "shares"


def tidy(installation: Installation, now: dt.datetime) -> list[str]:
    """One round of everything that belongs to no request; a sentence for each thing removed."""
    notes: list[str] = []
    chores: tuple[Chore, ...] = (
        _shares,
        _cards,
        _tunes,
        _processors,
        _models,
        _programs,
        _scratch,
        _audit,
    )
    for chore in chores:
        try:
            notes += chore(installation, now)
        except Exception as error:  # the others do not wait for it
            log.exception("%s failed", chore.__name__)
            notes.append(f"{chore.__name__} failed: {type(error).__name__}: {error}")
    return notes


def deleted_requests(installation: Installation, now: dt.datetime) -> list[RequestRecord]:
    """Requests whose files and layers have been kept for long enough."""
    before = now - _retention(installation)
    return installation.catalog.removable_requests(before, installation.settings.housekeeping.items)


def remove_request(installation: Installation, request: RequestRecord) -> None:
    """Remove a deleted request: its layers from GeoServer, its files, its rows.

    Raises:
        GeoServerError: a layer cannot be removed now.
        Conflict: it is not deleted, or not over.
    """
    _remove_layers(installation, request)
    installation.storage.delete(request.id)
    installation.catalog.forget_request(request.id)


def _remove_layers(installation: Installation, request: RequestRecord) -> None:
    settings = installation.settings.geoserver
    if settings is None or not request.n_tasks:
        return
    # Also of a publication that was cut off before it was recorded.
    wished = {layer["name"] for layer in request.spec.get("output_layers") or ()}
    recorded = {layer.name for layer in installation.catalog.layers(request.id)}
    with GeoServer(settings) as server:
        for name in sorted(_OWN_LAYERS | wished | recorded):
            server.delete_layer(f"{request.id}-{name}")


def _shares(installation: Installation, now: dt.datetime) -> Iterator[str]:
    limit = installation.settings.housekeeping.items
    for share in installation.catalog.expired_shares(now, limit):
        if not installation.catalog.close_share(share.id, now):
            continue  # a request named it just now
        installation.storage.delete(f"{_SHARES}/{share.id}")
        installation.catalog.forget_share(share.id)
        yield f"shared file {share.id}"


def _cards(installation: Installation, now: dt.datetime) -> Iterator[str]:
    limit = installation.settings.housekeeping.items
    before = now - _retention(installation)
    for card in installation.catalog.forget_cards(before, limit):
        yield f"card {card}"


def _tunes(installation: Installation, now: dt.datetime) -> Iterator[str]:
    limit = installation.settings.housekeeping.items
    before = now - _retention(installation)
    for tune in installation.catalog.forget_tunes(before, limit):
        yield f"tune {tune}"


def _processors(installation: Installation, now: dt.datetime) -> Iterator[str]:
    limit = installation.settings.housekeeping.items
    before = now - _retention(installation)
    delete_unneeded_scripts(installation)
    for processor in installation.catalog.forget_processors(before, limit):
        yield f"processor {processor}"


def _models(installation: Installation, now: dt.datetime) -> Iterator[str]:
    settings = installation.settings.housekeeping
    # A tune or a card takes a model up only after it was registered.
    before = now - max(_retention(installation), _silence(installation))
    for model in installation.catalog.forget_models(before, settings.items):
        yield f"model {model}"
    silent_since = (now - _silence(installation)).timestamp()
    for digest in remove_unused_bundles(installation, silent_since, settings.items):
        yield f"bundle {digest}"


def _programs(installation: Installation, now: dt.datetime) -> Iterator[str]:
    settings = installation.settings.housekeeping
    before = (now - dt.timedelta(days=settings.program_days)).timestamp()
    for name in remove_unused_programs(
        installation.settings.programs,
        needed_programs(installation),
        before,
        settings.program_bytes,
        settings.items,
    ):
        yield f"program {name}"


def _scratch(installation: Installation, now: dt.datetime) -> Iterator[str]:
    silent_since = (now - _silence(installation)).timestamp()
    removed = 0
    for path in installation.storage.scratch_entries():
        if removed == installation.settings.housekeeping.items:
            return
        if _is_silent(path, silent_since):
            if path.is_dir() and not path.is_symlink():
                remove_tree(path)
            else:
                path.unlink(missing_ok=True)
            removed += 1
            yield f"scratch {path.name}"


def _audit(installation: Installation, now: dt.datetime) -> Iterator[str]:
    days = installation.settings.gateway.audit_days
    if days:
        before = now.astimezone(dt.UTC).date() - dt.timedelta(days=days)
        yield from remove_before(installation.settings.audit, before)


def _is_silent(path: Path, since: float) -> bool:
    """Whether nothing in the tree was written since then (seconds of the epoch)."""
    try:
        if path.lstat().st_mtime > since:
            return False
        for folder, folders, files in os.walk(path):
            for name in (*folders, *files):
                if (Path(folder) / name).lstat().st_mtime > since:
                    return False
    except FileNotFoundError:  # somebody works on it
        return False
    except (OSError, RecursionError):  # deeper than any path: nobody's work, a script left it
        return True
    return True


def _retention(installation: Installation) -> dt.timedelta:
    return dt.timedelta(days=installation.settings.gateway.retention_days)


def _silence(installation: Installation) -> dt.timedelta:
    return dt.timedelta(hours=installation.settings.housekeeping.scratch_hours)
