"""What shows new processors without a restart: their location is loaded anew when they change."""

# No `from __future__ import annotations`: Dagster reads these signatures as they are.

import dagster as dg
import httpx

from geostudio_dagster.defs.resources import InstallationResource
from geostudio_dagster.errors import Unavailable

LOCATION = "processors"
TICK_S = 5
_RELOAD_S = 50.0  # a tick may take a minute
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


def reload_processors(dagster_url: str) -> None:
    """Have the webserver load the processors' location anew; it is loaded when this returns.

    Raises:
        Unavailable: the webserver does not answer, or cannot load the location.
    """
    body = {"query": _MUTATION, "variables": {"location": LOCATION}}
    try:
        answer = httpx.post(f"{dagster_url.rstrip('/')}/graphql", json=body, timeout=_RELOAD_S)
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


@dg.sensor(
    name="processor_watcher",
    minimum_interval_seconds=TICK_S,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Loads the processors' location anew when a processor came, changed or went.",
)
def processor_watcher(
    context: dg.SensorEvaluationContext, installation: InstallationResource
) -> dg.SkipReason:
    """Compare the catalog with what was loaded last; the cursor is its digest."""
    place = installation.get()
    digest = place.catalog.processors_digest()
    if digest == context.cursor:
        return dg.SkipReason("no processor changed")
    if place.settings.dagster_url is None:
        return dg.SkipReason("GEOSTUDIO_DAGSTER_URL does not say where the webserver answers")
    try:
        reload_processors(place.settings.dagster_url)
    except Unavailable as error:
        # It reads the catalog when it starts; until then there is nobody to show anything to.
        return dg.SkipReason(str(error))
    context.update_cursor(digest)
    return dg.SkipReason("the processors' location was loaded anew")
