"""Dagster's webserver is asked to load the processors' location anew when they changed.

Whoever notices first asks: the gateway right after an upload, the daemon's watcher for all else.
What was loaded last is kept in a file, so that one change is one reload.
"""

from __future__ import annotations

import fcntl
import logging
import threading
import time
from pathlib import Path

import httpx

from geostudio_dagster.errors import Unavailable
from geostudio_dagster.installation import Installation

log = logging.getLogger(__name__)

LOCATION = "processors"
_PAUSE_S = 3.0
_MOST = 2  # reloads in one call: with a slow webserver more would outlast a tick
_RELOAD_S = 25.0  # a sensor's tick may take a minute
_MUTATION = """
mutation Reload($location: String!) {
  reloadRepositoryLocation(repositoryLocationName: $location) {
    __typename
    ... on WorkspaceLocationEntry { locationOrLoadError { __typename } }
    ... on PythonError { message }
    ... on ReloadNotSupported { message }
    ... on RepositoryLocationNotFound { message }
    ... on UnauthorizedError { message }
  }
}"""


def reload_if_changed(installation: Installation) -> str:
    """Have the location loaded anew if processors changed since; what was done, as a sentence.

    Raises:
        Unavailable: the webserver does not answer, or cannot load the location.
    """
    url = installation.settings.dagster_url
    if url is None:
        return "GEOSTUDIO_DAGSTER_URL does not say where the webserver answers"
    mark = installation.settings.data_folder / "processors.loaded"
    with mark.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return "the processors' location is being loaded"  # and looked at again afterwards
        reloads = 0
        while (digest := installation.catalog.processors_digest()) != _loaded(mark):
            if reloads == _MOST:
                return "the processors go on changing; the next tick loads their location anew"
            _pause(mark)
            reload_processors(url)
            mark.write_text(digest)
            reloads += 1
    return "the processors' location was loaded anew" if reloads else "no processor changed"


def reload_soon(installation: Installation) -> None:
    """The same in the background; what goes wrong is left to the daemon's watcher."""
    if installation.settings.dagster_url is None:
        return

    def reload() -> None:
        try:
            reload_if_changed(installation)
        except Exception as error:
            log.info("the processors' location is not loaded anew yet: %s", error)

    threading.Thread(target=reload, name="reload-processors", daemon=True).start()


def reload_processors(dagster_url: str) -> None:
    """Have the webserver load the processors' location anew; it is loaded when this returns.

    Raises:
        Unavailable: the webserver does not answer, or cannot load the location.
    """
    body = {"query": _MUTATION, "variables": {"location": LOCATION}}
    try:
        url = f"{dagster_url.rstrip('/')}/graphql"
        answer = httpx.post(url, json=body, timeout=_RELOAD_S, trust_env=False)
        entry = answer.json()["data"]["reloadRepositoryLocation"]
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise Unavailable(
            f"Dagster's webserver at {dagster_url} does not answer ({error}); "
            "start it, or correct GEOSTUDIO_DAGSTER_URL."
        ) from error
    loaded = (entry.get("locationOrLoadError") or {}).get("__typename")
    if loaded != "RepositoryLocation":
        raise Unavailable(
            f"The location {LOCATION} was not loaded: {entry.get('message') or loaded}; "
            "see the webserver's log."
        )


def _pause(mark: Path) -> None:
    """Many uploads in a row share reloads: each starts a process, and the one before lingers."""
    if mark.exists():
        since = time.time() - mark.stat().st_mtime
        time.sleep(min(max(_PAUSE_S - since, 0.0), _PAUSE_S))


def _loaded(mark: Path) -> str:
    return mark.read_text() if mark.exists() else ""
