"""The calls of Kubernetes' API that running one pod needs, on loopback, for the real clients.

Strict where that finds mistakes: a pod must follow the published schema and, as in a namespace
that enforces it, the Pod Security Standard ``restricted``. Its container then really runs, see
:mod:`pods`; a pod is pending until it was looked at once.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kubernetes_validate
import yaml

from geostudio_dagster_tests.emulators.pod_security import containers, violations
from geostudio_dagster_tests.emulators.pods import LocalPod

VERSION = "1.30"
_QUANTITY = re.compile(r"[+-]?[0-9.]+([eE][+-]?[0-9]+|[numkMGTPE]|[KMGTPE]i)?")


class ClusterEmulator:
    """Pods of any namespace; ``claims`` are folders that stand for volumes."""

    def __init__(self, claims: Mapping[str, Path]) -> None:
        self.url = ""
        self.created: list[dict[str, Any]] = []
        self.deleted: list[str] = []
        self.pods: dict[tuple[str, str], LocalPod] = {}
        self.hold = False  # pods stay pending, as where no node has room
        self.evict = ""  # the next pod fails before its container starts, with this message
        self._claims = claims
        self._lock = threading.Lock()

    def answer(
        self, method: str, path: str, query: Mapping[str, str], body: bytes
    ) -> tuple[int, Any]:
        """Status and document (or bytes) of one call."""
        with self._lock:
            parts = path.strip("/").split("/")
            if parts[:3] != ["api", "v1", "namespaces"] or parts[4:5] != ["pods"]:
                return _refused(404, "NotFound", f"no such path: {path}")
            namespace, rest = parts[3], parts[5:]
            if not rest:
                if method == "POST":
                    return self._create(namespace, json.loads(body))
                return 200, self._list(namespace, query.get("fieldSelector", ""))
            pod = self.pods.get((namespace, rest[0]))
            if pod is None:
                return _refused(404, "NotFound", f'pods "{rest[0]}" not found')
            return self._of(pod, namespace, method, rest[1:], query)

    def _of(
        self, pod: LocalPod, namespace: str, method: str, rest: list[str], query: Mapping[str, str]
    ) -> tuple[int, Any]:
        if rest == ["log"]:
            numbers = (query.get("tailLines"), query.get("limitBytes"))
            tail, most = (int(number) if number else None for number in numbers)
            return 200, pod.log(tail, most)
        if method == "DELETE":
            pod.delete()
            del self.pods[namespace, pod.name]
            self.deleted.append(pod.name)
            return 200, pod.document
        return 200, self._shown(pod)

    def _create(self, namespace: str, document: dict[str, Any]) -> tuple[int, Any]:
        document |= {"apiVersion": "v1", "kind": "Pod"}
        name = document["metadata"]["name"]
        try:
            kubernetes_validate.validate(document, VERSION, strict=True)
        except kubernetes_validate.ValidationError as error:
            return _refused(422, "Invalid", f'Pod "{name}" is invalid: {error}')
        if odd := [amount for amount in _quantities(document) if not _QUANTITY.fullmatch(amount)]:
            text = f"{odd[0]}: quantities must match the regular expression"
            return _refused(400, "BadRequest", f'Pod "{name}" cannot be read: {text}')
        if found := violations(document):
            text = f'violates PodSecurity "restricted:latest": {", ".join(found)}'
            return _refused(403, "Forbidden", f'pods "{name}" is forbidden: {text}')
        document["metadata"] |= {"namespace": namespace, "uid": f"uid-{len(self.created)}"}
        self.created.append(document)
        self.pods[namespace, name] = LocalPod(document, self._claims)
        return 201, document

    def _list(self, namespace: str, selector: str) -> dict[str, Any]:
        name = selector.removeprefix("metadata.name=")
        found = [
            pod for (space, key), pod in self.pods.items() if (space, key) == (namespace, name)
        ]
        return {"kind": "PodList", "apiVersion": "v1", "items": [self._shown(pod) for pod in found]}

    def _shown(self, pod: LocalPod) -> dict[str, Any]:
        if self.evict:
            status = {"phase": "Failed", "reason": "Evicted", "message": self.evict}
            return {**pod.document, "status": status}
        shown = {**pod.document, "status": pod.status()}
        if shown["status"]["phase"] == "Pending" and not self.hold:
            pod.start()
        return shown

    def close(self) -> None:
        """End every pod that is left."""
        for pod in self.pods.values():
            pod.delete()


def _quantities(pod: dict[str, Any]) -> Iterator[str]:
    for container in containers(pod):
        for kind in ("limits", "requests"):
            yield from container["resources"].get(kind, {}).values()


def _refused(status: int, reason: str, message: str) -> tuple[int, dict[str, Any]]:
    document = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status}
    return status, {**document, "reason": reason, "message": message}


@contextlib.contextmanager
def serving(folder: Path, claims: Mapping[str, Path]) -> Iterator[tuple[ClusterEmulator, Path]]:
    """An empty cluster, and a kubeconfig for it in ``folder``."""
    cluster = ClusterEmulator(claims)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(cluster))
    server.daemon_threads = True
    cluster.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield cluster, _kubeconfig(folder / "kubeconfig", cluster.url)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        cluster.close()


def _kubeconfig(path: Path, url: str) -> Path:
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "here", "cluster": {"server": url}}],
        "users": [{"name": "stage", "user": {"token": "its-own"}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "stage"}}],
        "current-context": "here",
    }
    path.write_text(yaml.safe_dump(document))
    return path


def _handler_of(cluster: ClusterEmulator) -> type[BaseHTTPRequestHandler]:
    class HttpHandler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            parts = urlsplit(self.path)
            query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, content = cluster.answer(self.command, parts.path, query, body)
            is_text = isinstance(content, bytes)
            data = content if is_text else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if is_text else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = _serve  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Calls are kept as state, not printed."""

    return HttpHandler
