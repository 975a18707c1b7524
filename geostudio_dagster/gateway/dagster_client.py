"""Dagster's GraphQL, as far as the gateway needs it: runs launched, found and ended."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from geostudio_dagster.errors import GeostudioError
from geostudio_dagster.pipeline.launches import SHARD_JOB, Launch

_TIMEOUT = httpx.Timeout(30.0, connect=2.0)
_LIVE = ("NOT_STARTED", "QUEUED", "STARTING", "STARTED", "CANCELING")

_REPOSITORIES = """
query { repositoriesOrError {
  ... on RepositoryConnection { nodes { name location { name } jobs { name } } } } }
"""
_ADD_PARTITION = """
mutation($key: String!, $name: String!, $repository: RepositorySelector!) {
  addDynamicPartition(
    partitionKey: $key, partitionsDefName: $name, repositorySelector: $repository
  ) { __typename ... on PythonError { message } ... on UnauthorizedError { message } } }
"""
_LAUNCH = """
mutation($params: ExecutionParams!) { launchRun(executionParams: $params) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on Error { message } } }
"""
_RUNS = """
query($filter: RunsFilter!) { runsOrError(filter: $filter, limit: 1000) {
  __typename ... on Runs { results { runId status jobName } } ... on Error { message } } }
"""
_TERMINATE = """
mutation($ids: [String!]!) { terminateRuns(runIds: $ids, terminatePolicy: SAFE_TERMINATE) {
  __typename ... on PythonError { message } } }
"""


class DagsterUnavailable(GeostudioError):
    """Dagster does not answer; nothing was launched."""


class DagsterRefused(GeostudioError):
    """Dagster answered that it cannot do what it was asked for."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run that is not over."""

    id: str
    job: str
    status: str


class DagsterClient:
    """A connection to Dagster's webserver. May be used by several threads."""

    def __init__(self, url: str) -> None:
        # Our own machine's webserver, whatever proxies the environment names.
        self._http = httpx.Client(base_url=url.rstrip("/"), timeout=_TIMEOUT, trust_env=False)
        self._repository: dict[str, str] | None = None
        self._lock = threading.Lock()

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    def find(self) -> None:
        """See that the platform is there to be launched.

        Raises:
            DagsterUnavailable, DagsterRefused: it is not.
        """
        self._find_repository()
        if not self.ping():
            raise DagsterUnavailable("Dagster does not answer.")

    def ping(self) -> bool:
        """Whether the webserver is there."""
        try:
            return self._http.get("/server_info", timeout=2.0).is_success
        except httpx.HTTPError:
            return False

    def add_partition(self, definition: str, key: str) -> None:
        """Make a dynamic partition; one that is there already stays as it is.

        Raises:
            DagsterUnavailable, DagsterRefused: it was not made.
        """
        variables = {"key": key, "name": definition, "repository": self._find_repository()}
        answer = self._ask(_ADD_PARTITION, variables)["addDynamicPartition"]
        known = ("AddDynamicPartitionSuccess", "DuplicateDynamicPartitionError")
        if answer["__typename"] not in known:
            raise DagsterRefused(str(answer.get("message") or answer["__typename"]))

    def launch(self, launch: Launch) -> str:
        """Put a run into the queue; its id.

        Raises:
            DagsterUnavailable, DagsterRefused: it is not in the queue, as far as one knows.
        """
        params = {
            "selector": {**self._find_repository(), "jobName": launch.job},
            "runConfigData": dict(launch.run_config),
            "executionMetadata": {"tags": _tags(launch.tags)},
        }
        answer = self._ask(_LAUNCH, {"params": params})["launchRun"]
        if answer["__typename"] != "LaunchRunSuccess":
            raise DagsterRefused(str(answer.get("message") or answer["__typename"]))
        return str(answer["run"]["runId"])

    def live_runs(self, tags: Mapping[str, str]) -> list[Run]:
        """The runs with all of the tags that are not over.

        Raises:
            DagsterUnavailable, DagsterRefused: there is no answer.
        """
        wanted = {"tags": _tags(tags), "statuses": list(_LIVE)}
        answer = self._ask(_RUNS, {"filter": wanted})["runsOrError"]
        if answer["__typename"] != "Runs":
            raise DagsterRefused(str(answer.get("message") or answer["__typename"]))
        return [Run(run["runId"], run["jobName"], run["status"]) for run in answer["results"]]

    def terminate(self, run_ids: Sequence[str]) -> None:
        """End runs: those that wait never begin, those that work are interrupted.

        Raises:
            DagsterUnavailable, DagsterRefused: they may go on.
        """
        if not run_ids:
            return
        answer = self._ask(_TERMINATE, {"ids": list(run_ids)})["terminateRuns"]
        if answer["__typename"] != "TerminateRunsResult":
            raise DagsterRefused(str(answer.get("message") or answer["__typename"]))

    def report_materialization(
        self, asset: str, partition: str, metadata: Mapping[str, Any]
    ) -> None:
        """Log that a partition of an asset was made outside of any run.

        Raises:
            DagsterUnavailable, DagsterRefused: it is not logged.
        """
        body = {"asset_key": asset, "partition": partition, "metadata": dict(metadata)}
        try:
            answer = self._http.post(f"/report_asset_materialization/{asset}", json=body)
        except httpx.HTTPError as error:
            raise DagsterUnavailable(f"Dagster does not answer ({error}).") from error
        if not answer.is_success:
            raise DagsterRefused(answer.text[:500])

    def _find_repository(self) -> dict[str, str]:
        with self._lock:
            if self._repository is None:
                found = self._ask(_REPOSITORIES, {})["repositoriesOrError"].get("nodes", [])
                ours = [r for r in found if SHARD_JOB in {job["name"] for job in r["jobs"]}]
                if not ours:
                    raise DagsterUnavailable("Dagster has not loaded the platform (yet).")
                self._repository = {
                    "repositoryName": ours[0]["name"],
                    "repositoryLocationName": ours[0]["location"]["name"],
                }
            return self._repository

    def _ask(self, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        try:
            answer = self._http.post("/graphql", json={"query": query, "variables": variables})
            answer.raise_for_status()
            document = answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise DagsterUnavailable(f"Dagster does not answer ({error}).") from error
        if document.get("errors"):
            raise DagsterRefused(str(document["errors"][0].get("message"))[:500])
        data: dict[str, Any] = document["data"]
        return data


def _tags(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in tags.items()]
