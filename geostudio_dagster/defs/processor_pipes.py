"""Dagster's Pipes client for Kubernetes, for programs that know nothing of Pipes."""

# No `from __future__ import annotations`: Dagster reads these signatures as they are.

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import dagster as dg
from dagster_k8s import PipesK8sClient
from dagster_k8s.client import DagsterK8sError
from kubernetes.client import ApiException

from geostudio_dagster.errors import Cancelled, TaskError
from geostudio_dagster.processors.log import readable
from geostudio_dagster.processors.watch import Breach

_POLL_S = 1.0
_LINES = 2000  # the last ones of a log
_OVER = ("Succeeded", "Failed")
_GONE = 404


@dataclass(slots=True)
class PodEnd:
    """How a pod's only container ended, and the end of what it printed.

    ``reason`` is Kubernetes' own word; ``breach`` the limit for which it was ended before.
    """

    exit_code: int = 0
    reason: str = ""
    log: str = ""
    breach: Breach | None = None


class _LimitPassedError(Exception):
    """The pod is to be deleted while it runs."""


class _Nothing(dg.PipesContextInjector):
    """Scripts are told nothing of the run that they belong to."""

    @contextmanager
    def inject_context(self, context: Any) -> Iterator[dict[str, Any]]:
        yield {}

    def no_messages_debug_text(self) -> str:
        return "Nothing is sent to users' scripts."


class StoppablePipes(PipesK8sClient):
    """Waits for the pod itself: bounded in its log and its start, and until somebody stops it.

    ``passed`` is asked for a limit that the pod has passed, with the seconds that it runs. What
    scripts print is never read as messages of Pipes.
    """

    def __init__(
        self,
        log_bytes: int,
        cancelled: Callable[[], bool],
        start_s: float,
        passed: Callable[[float], Breach | None] = lambda _: None,
        poll_s: float = _POLL_S,
    ) -> None:
        super().__init__(poll_interval=poll_s, context_injector=_Nothing())
        self._log_bytes = log_bytes
        self._cancelled = cancelled
        self._start_s = start_s
        self._passed = passed
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
            TaskError: the pod was refused, did not start in time, or was taken away.
            Cancelled: somebody stopped it.
        """
        try:
            self.run(
                context=context.op_execution_context,
                base_pod_spec=dict(spec),
                base_pod_meta={"labels": dict(labels)},
                namespace=namespace,
            )
        except (_LimitPassedError, DagsterK8sError, ApiException) as error:
            if not self._end.reason:  # else it had ended, and only its deletion went wrong
                raise _lost(error) from error
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
        breach = self._wait(client.core_api, namespace, pod_name)
        text = b""
        with suppress(ApiException):  # of a container that never started there is none
            text = client.core_api.read_namespaced_pod_log(
                pod_name,
                namespace,
                tail_lines=_LINES,
                limit_bytes=self._log_bytes,
                _preload_content=False,
            ).data
        if breach:
            self._end = PodEnd(1, "Stopped", readable(text), breach)
            raise _LimitPassedError
        pod = client.core_api.read_namespaced_pod_status(pod_name, namespace)
        if not pod.status.container_statuses and pod.status.reason != "DeadlineExceeded":
            why = pod.status.message or pod.status.reason or "it never started"
            raise DagsterK8sError(f"{why}")
        self._end = _end_of(pod.status, readable(text))
        if not pod.status.container_statuses:  # the client would wait for them for a day
            raise _LimitPassedError
        yield

    def _wait(self, api: Any, namespace: str, pod_name: str) -> Breach | None:
        """Look at the pod until it is over; the limit that it passed before, if any."""
        deadline = time.monotonic() + self._start_s
        running_since = None
        while True:
            phase = api.read_namespaced_pod_status(pod_name, namespace).status.phase
            if phase in _OVER:
                return None
            if self._cancelled():
                raise Cancelled("The processor was stopped on request.")
            now = time.monotonic()
            if phase == "Running":
                running_since = running_since or now
                if breach := self._passed(now - running_since):
                    return breach
            elif now > deadline:
                raise TaskError(
                    "processor_pod",
                    f"The processor's pod did not start within {self._start_s:g} s.",
                    retryable=True,
                )
            time.sleep(self.poll_interval)


def _lost(error: Exception) -> TaskError:
    if not isinstance(error, ApiException):
        return TaskError("processor_pod", f"The processor's pod was lost: {error}", retryable=True)
    if error.status == _GONE:
        text = "The processor's pod was taken away before its end."
        return TaskError("processor_pod", text, retryable=True)
    try:
        said = json.loads(error.body)["message"]
    except (TypeError, ValueError, KeyError):
        said = error.reason
    return TaskError(
        "processor_pod", f"Kubernetes does not run the processor's pod: {said}", retryable=True
    )


def _end_of(status: Any, log: str) -> PodEnd:
    states = [item.state.terminated for item in status.container_statuses or () if item.state]
    ended = next((state for state in states if state is not None), None)
    if status.reason == "DeadlineExceeded" or ended is None:
        return PodEnd(1, status.reason or "Lost", log)
    return PodEnd(int(ended.exit_code), str(ended.reason or "Completed"), log)
