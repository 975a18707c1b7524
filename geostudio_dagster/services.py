"""The processes of an installation on one machine: daemon, webserver and gateway.

Each runs in its own session with its output in a log file, and all of them (with their
children) end when this process does its clean-up.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from dagster import DagsterInstance

from geostudio_dagster.errors import GeostudioError
from geostudio_dagster.settings import Settings

_START_S = 300.0  # a busy machine imports slowly; who ended by itself is noticed at once
_PROBE_S = 10.0
_STOP_S = 10.0
_POLL_S = 0.2
Processes = Mapping[str, subprocess.Popen[bytes]]


class ServiceError(GeostudioError):
    """A service that did not start or ended by itself."""


@dataclass(frozen=True, slots=True)
class Service:
    """One process: its name, its arguments, and the address that answers once it is up."""

    name: str
    arguments: tuple[str, ...]
    url: str | None = None
    probe: str | None = None
    lock: int | None = None  # a descriptor that it keeps open, and so locked, while it lives


def dagster_home(settings: Settings, dagster_yaml: Path) -> Path:
    """Dagster's own folder inside the data folder, with the installation's ``dagster.yaml``.

    Raises:
        ServiceError: there is no ``dagster.yaml`` at the given place.
    """
    if not dagster_yaml.is_file():
        raise ServiceError(
            f"There is no {dagster_yaml}; run this where the project's dagster.yaml lies, "
            "or name it with --dagster-yaml."
        )
    home = settings.data_folder / "dagster"
    home.mkdir(parents=True, exist_ok=True)
    target = home / "dagster.yaml"
    if not target.exists() or target.read_bytes() != dagster_yaml.read_bytes():
        shutil.copyfile(dagster_yaml, target)
    # Its tables are made here, once: daemon and webserver that start together on an empty folder
    # would both try, and the slower one would die of it.
    with DagsterInstance.from_config(str(home)) as instance:
        instance.get_runs_count()
        instance.all_instigator_state()
    return home


def daemon(workspace: Path, lock: int | None = None) -> Service:
    """Dagster's daemon: sensors and the run queue; see :func:`sole_daemon`."""
    return Service("daemon", ("-m", "dagster._daemon", "run", "-w", str(workspace)), lock=lock)


def webserver(workspace: Path, port: int) -> Service:
    """Dagster's UI and GraphQL."""
    url = f"http://127.0.0.1:{port}"
    arguments = ("-m", "dagster_webserver", "-w", str(workspace), "-h", "127.0.0.1")
    return Service("webserver", (*arguments, "-p", str(port)), url, f"{url}/server_info")


def gateway(port: int) -> Service:
    """REST API, maps, layers and files; its output is kept, so it makes no key by itself."""
    url = f"http://127.0.0.1:{port}"
    arguments = ("-m", "geostudio_dagster", "gateway", "--port", str(port), "--no-first-key")
    return Service("gateway", arguments, url, f"{url}/health/livez")


@contextmanager
def running(services: Iterable[Service], settings: Settings, home: Path) -> Iterator[Processes]:
    """Start the services, wait until those with a probe answer, stop all of them at the end.

    In the main thread a SIGTERM is a KeyboardInterrupt meanwhile, so that it is such an end, too.

    Raises:
        ServiceError: a port is taken, or a service ended before it answered.
    """
    services = list(services)
    for service in services:
        _require_free(service)
    logs = settings.data_folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "DAGSTER_HOME": str(home),
        "GEOSTUDIO_DATA_FOLDER": str(settings.data_folder),
        "GEOSTUDIO_ALLOWED_ROOTS": json.dumps([str(root) for root in settings.allowed_roots]),
        "GEOSTUDIO_GATEWAY_URL": settings.gateway_url,
        "PYTHONUNBUFFERED": "1",
    }
    for service in services:
        if service.name == "webserver" and service.url:
            environment["GEOSTUDIO_DAGSTER_URL"] = service.url
    processes: dict[str, subprocess.Popen[bytes]] = {}
    with _interrupted_by_sigterm():
        try:
            for service in services:
                processes[service.name] = _start(service, environment, logs)
            for service in services:
                _wait_for(service, processes[service.name], logs)
            yield processes
        finally:
            stop_all(processes.values())


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _start(service: Service, environment: Mapping[str, str], logs: Path) -> subprocess.Popen[bytes]:
    with (logs / f"{service.name}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, *service.arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
            pass_fds=() if service.lock is None else (service.lock,),
        )


@contextmanager
def sole_daemon(settings: Settings, workspace: Path) -> Iterator[Service | None]:
    """Dagster's daemon (sensors and the run queue); None where another one works here.

    Two on one data folder would do all work twice. The lock is the daemon's as well as this
    process's: it goes when both have ended, in whatever way.
    """
    with (settings.data_folder / "daemon.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield daemon(workspace, lock.fileno())


def check_alive(processes: Processes, settings: Settings) -> None:
    """See that none of the processes ended.

    Raises:
        ServiceError: one did.
    """
    for name, process in processes.items():
        if process.poll() is not None:
            log = settings.data_folder / "logs" / f"{name}.log"
            raise ServiceError(f"The {name} ended by itself; see {log}.")


def watch(processes: Processes, settings: Settings) -> None:
    """Wait until Ctrl-C, SIGTERM, or the end of any of the processes.

    Raises:
        ServiceError: a process ended by itself.
    """
    try:
        while True:
            check_alive(processes, settings)
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        return


def stop_all(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """End the processes and everything they started: asked first, then killed."""
    processes = list(processes)
    for process in processes:
        _signal_group(process, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_S
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            continue
    for process in processes:
        _signal_group(process, signal.SIGKILL)
        process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


def _require_free(service: Service) -> None:
    if service.url is None:
        return
    port = int(service.url.rsplit(":", 1)[1])
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise ServiceError(
                f"Port {port} for the {service.name} is taken; stop what uses it or choose "
                f"another with --{service.name}-port."
            ) from None


def _wait_for(service: Service, process: subprocess.Popen[bytes], logs: Path) -> None:
    if service.probe is None:
        return
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            # A proxy of the environment knows nothing of this machine's own ports.
            answer = httpx.get(service.probe, timeout=_PROBE_S, trust_env=False)
            if answer.status_code < 500:  # noqa: PLR2004
                return
        except httpx.HTTPError:
            pass  # not there yet
        time.sleep(_POLL_S)
    raise ServiceError(f"The {service.name} did not start; see {logs / (service.name + '.log')}.")
