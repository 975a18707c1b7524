"""A submitted request starts at once, where Dagster answers; where not, it is kept.

The sensors do all of this, too, on their ticks. So whatever is missed here (Dagster is down, this
process ends) only comes later, and nothing here has to succeed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Literal

from geostudio_dagster.catalog import RequestStatus
from geostudio_dagster.catalog.card_records import OnboardingRecord
from geostudio_dagster.catalog.heartbeats import planner_lease
from geostudio_dagster.catalog.states import LIVE_REQUESTS
from geostudio_dagster.errors import GeostudioError, InvalidRequest
from geostudio_dagster.gateway.dagster_client import (
    DagsterClient,
    DagsterRefused,
    DagsterUnavailable,
)
from geostudio_dagster.installation import Installation
from geostudio_dagster.pipeline import launches
from geostudio_dagster.pipeline.plans import plan_request
from geostudio_dagster.pipeline.stage import heartbeat

log = logging.getLogger(__name__)

State = Literal["off", "ok", "degraded"]

_WORKERS = 4
_MOST_WAITING = 200  # launches that wait for a worker; the sensors see to the others
_FEW_SCENES = 20  # so many are looked at here; more are planned by a run of their own
_FEW_SHARDS = 20
_ASK_AGAIN_S = 3.0
_STOPPED_WITHIN_S = 10.0
_POLL_S = 0.25


class Launcher:
    """Plans and launches small requests, launches the planning of large ones, ends runs."""

    def __init__(self, installation: Installation) -> None:
        url = installation.settings.dagster_url
        self._installation = installation
        self._dagster = DagsterClient(url) if url else None
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="launch")
        self._waiting = threading.BoundedSemaphore(_MOST_WAITING)
        self._asked_at, self._answered = float("-inf"), False
        self._closing = threading.Event()

    def close(self) -> None:
        """End; what waits is left to the sensors."""
        self._closing.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._dagster is not None:
            self._dagster.close()

    def state(self) -> State:
        """Whether requests start at once, or are kept until Dagster is back (``degraded``)."""
        if self._dagster is None:
            return "off"
        if time.monotonic() - self._asked_at > _ASK_AGAIN_S:
            self._answered = self._dagster.ping()
            self._asked_at = time.monotonic()
        return "ok" if self._answered else "degraded"

    def submitted(self, request_id: str) -> None:
        """A request was written."""
        if self._dagster is None or not self._worth_asking():
            return
        # From now on the planning sensor leaves it to us, for as long as we are alive.
        catalog = self._installation.catalog
        lease_s = self._installation.settings.shards.lease_s
        catalog.keep_alive(planner_lease(request_id), lease_s)
        self._later(self._start, request_id)

    def retried(self, request_id: str) -> None:
        """Tasks of a request are ready again."""
        self._later(self._dispatch, request_id)

    def cancelled(self, request_id: str) -> None:
        """A request is to stop."""
        self._later(self._stop, request_id)

    def onboarding(self, wish: OnboardingRecord) -> None:
        """A tune or a model is to become a bundle."""

        def launch(dagster: DagsterClient, _: str) -> None:
            dagster.find()
            dagster.launch(launches.onboarding(wish, 0))

        self._later(launch, wish.id)

    def _worth_asking(self) -> bool:
        return self._answered or time.monotonic() - self._asked_at > _ASK_AGAIN_S

    def _later(self, work: Callable[[DagsterClient, str], None], request_id: str) -> None:
        if self._dagster is None or not self._waiting.acquire(blocking=False):
            return
        try:
            self._pool.submit(self._attempt, work, self._dagster, request_id)
        except RuntimeError:  # this process is ending
            self._waiting.release()

    def _attempt(
        self, work: Callable[[DagsterClient, str], None], dagster: DagsterClient, request_id: str
    ) -> None:
        try:
            work(dagster, request_id)
            self._answered = True
        except DagsterUnavailable as error:
            self._answered = False
            log.warning("request %s is kept until Dagster answers: %s", request_id, error)
        except (DagsterRefused, InvalidRequest) as error:
            log.warning("request %s was not launched at once: %s", request_id, error)
        except Exception:
            log.exception("request %s was not launched at once", request_id)
        finally:
            self._asked_at = time.monotonic()
            self._waiting.release()

    def _start(self, dagster: DagsterClient, request_id: str) -> None:
        with self._held(request_id):
            dagster.find()
            request = self._installation.catalog.request(request_id)
            # Areas are searched for at another server, which may take its time.
            if not 0 < len(request.spec["spatial_domain"]["urls"]) <= _FEW_SCENES:
                dagster.launch(launches.planning(request_id, 0))
                return
            planned = plan_request(self._installation, request_id)
            self._dispatch(dagster, request_id)
        metadata = {"tasks": planned.tasks, "shards": planned.shards, "model": planned.model}
        dagster.report_materialization("request_plan", request_id, metadata)

    @contextmanager
    def _held(self, request_id: str) -> Iterator[None]:
        """Sensors leave the request to us meanwhile, however long Dagster takes to answer."""
        holder = planner_lease(request_id)
        try:
            with heartbeat(self._installation, holder):
                yield
        finally:
            self._installation.catalog.keep_alive(holder, 0.0)

    def _dispatch(self, dagster: DagsterClient, request_id: str) -> None:
        dagster.find()
        wanted = launches.take_shards(self._installation, _FEW_SHARDS, request_id)
        if not wanted:
            return
        missing = list(wanted)
        try:
            dagster.add_partition(launches.REQUEST_PARTITIONS, request_id)
            for launch in wanted:
                dagster.add_partition(launches.SHARD_PARTITIONS, str(launch.partition))
                dagster.launch(launch)
                missing.remove(launch)
        except GeostudioError:
            launches.give_back(self._installation, missing)
            raise

    def _stop(self, dagster: DagsterClient, request_id: str) -> None:
        """End the runs of a cancelled request, and note it as stopped as soon as they are over."""
        catalog = self._installation.catalog
        deadline = time.monotonic() + _STOPPED_WITHIN_S
        told: set[str] = set()
        while time.monotonic() < deadline and not self._closing.is_set():
            runs = dagster.live_runs({launches.REQUEST_TAG: request_id})
            request = catalog.request(request_id)
            # A publication ends by itself; cut short, it would leave half a layer.
            ours = [run for run in runs if run.id != request.publish_run_id]
            fresh = [run.id for run in ours if run.id not in told and run.status != "CANCELING"]
            dagster.terminate(fresh)
            told.update(fresh)
            if request.status not in LIVE_REQUESTS:
                if not ours:
                    return
            elif not runs and request.status != RequestStatus.PENDING:
                catalog.finish_cancel(request_id)
                return
            self._closing.wait(_POLL_S)
