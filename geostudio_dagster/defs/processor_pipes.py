"""Dagster's Pipes client for Kubernetes, for programs that know nothing of Pipes."""

# No `from __future__ import annotations`: Dagster reads these signatures as they are.

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import dagster as dg
from dagster_k8s import PipesK8sClient
from dagster_k8s.client import DagsterK8sError

from geostudio_dagster.errors import Cancelled, TaskError
from geostudio_dagster.processors.log import readable

_POLL_S = 1.0
_LINES = 2000  # the last ones of a log
_OVER = ("Succeeded", "Failed")


@dataclass(slots=True)
class PodEnd:
    """How a pod's only container ended, and the end of what it printed."""

    exit_code: int = 0
    reason: str = ""
    log: str = ""


class StoppablePipes(PipesK8sClient):
    """Waits for the pod itself: bounded in its log and its start, and until somebody stops it."""

    def __init__(self, log_bytes: int, cancelled: Callable[[], bool], start_s: float) -> None:
        super().__init__(poll_interval=_POLL_S)
        self._log_bytes = log_bytes
        self._cancelled = cancelled
        self._start_s = start_s
        self._end = PodEnd()

    def run_script(
        self,
        context: dg.AssetExecutionContext,
        spec: Mapping[str, Any],
        labels: Mapping[str, str],
        namespace: str | None,
    ) -> PodEnd:
        """Run the pod to its end and delete it; an exit code other than 0 is no error here.

        Raises:
            TaskError: the pod did not start in time, or was taken away.
            Cancelled: somebody stopped it.
        """
        try:
            self.run(
                context=context.op_execution_context,
                base_pod_spec=dict(spec),
                base_pod_meta={"labels": dict(labels)},
                namespace=namespace,
            )
        except DagsterK8sError as error:
            if not self._end.reason:
                raise TaskError(
                    "processor_pod", f"The processor's pod was lost: {error}", retryable=True
                ) from error
        return self._end

    @contextmanager
    def consume_pod_logs(  # noqa: PLR0917 - as the client has it
        self,
        context: Any,
        client: Any,
        namespace: str,
        pod_name: str,
        enable_multi_container_logs: bool = False,
        ignore_containers: set[Any] | None = None,
    ) -> Iterator[None]:
        """Wait until the pod is over and take the end of its log."""
        deadline = time.monotonic() + self._start_s
        while True:
            pod = client.core_api.read_namespaced_pod_status(pod_name, namespace)
            if pod.status.phase in _OVER:
                break
            if self._cancelled():
                raise Cancelled("The processor was stopped on request.")
            if pod.status.phase == "Pending" and time.monotonic() > deadline:
                raise TaskError(
                    "processor_pod",
                    f"The processor's pod did not start within {self._start_s:g} s.",
                    retryable=True,
                )
            time.sleep(_POLL_S)
        text = client.core_api.read_namespaced_pod_log(
            pod_name,
            namespace,
            tail_lines=_LINES,
            limit_bytes=self._log_bytes,
            _preload_content=False,
        )
        self._end = _end_of(pod.status, readable(text.data))
        yield


def _end_of(status: Any, log: str) -> PodEnd:
    states = [item.state.terminated for item in status.container_statuses or () if item.state]
    ended = next((state for state in states if state is not None), None)
    if status.reason == "DeadlineExceeded" or ended is None:
        return PodEnd(1, status.reason or "Lost", log)
    return PodEnd(int(ended.exit_code), str(ended.reason or "Completed"), log)
