"""What a node does with a pod: its container's own command runs here, with what the pod may see.

bubblewrap stands for the container runtime: the mounts of the volumes below a read-only root, the
pod's user, exactly the environment that the kubelet gives, no network (as under the default-deny
policy), and the same ends: exit codes, deadlines, deletion.
"""

from __future__ import annotations

import datetime as dt
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from geostudio_dagster.processors.python import python_folders, system_folders

_VARIABLE = re.compile(r"\$\$|\$\(([A-Za-z_][\w.-]*)\)")
# What every container of a cluster gets, wanted or not.
CLUSTER = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_PORT": "tcp://10.0.0.1:443"}


class LocalPod:
    """A pod of one container, from its start to its deletion."""

    def __init__(self, document: dict[str, Any], claims: Mapping[str, Path]) -> None:
        self.document = document
        self._claims = claims
        self._work = Path(tempfile.mkdtemp(prefix="pod-"))
        self._log = self._work / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._reason = ""

    @property
    def name(self) -> str:
        return str(self.document["metadata"]["name"])

    def start(self) -> None:
        """Run the container."""
        spec = self.document["spec"]
        (container,) = spec["containers"]
        security = {**(spec.get("securityContext") or {}), **container["securityContext"]}
        given = {entry["name"]: entry["value"] for entry in container.get("env") or []}
        variables = {**CLUSTER, "HOSTNAME": self.name, "PATH": "/usr/bin:/bin"}
        for name, value in given.items():
            variables[name] = expanded(value, variables)
        command = [expanded(word, variables) for word in container["command"]]
        user = str(security["runAsUser"])
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["bwrap", *self._root(container), "--", *_become(user), *command],
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if seconds := spec.get("activeDeadlineSeconds"):
            timer = threading.Timer(seconds, self._expire)
            timer.daemon = True
            timer.start()

    def _root(self, container: dict[str, Any]) -> Iterator[str]:
        yield from ("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts")
        yield from ("--die-with-parent", "--cap-drop", "ALL")
        yield "--as-pid-1"  # as in a container, whose first process most signals do not end
        if os.geteuid() == 0:  # no user namespace: there, root would stay root to its files
            yield from ("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID")
        yield from ("--proc", "/proc", "--dev", "/dev")
        for folder in system_folders():
            if folder.is_symlink():
                yield from ("--symlink", str(folder.readlink()), str(folder))
            else:
                yield from ("--ro-bind", str(folder), str(folder))
        for parent in sorted({str(p) for folder in python_folders() for p in folder.parents}):
            if parent != "/":
                yield from ("--perms", "0755", "--dir", parent)
        for folder in python_folders():
            yield from ("--ro-bind", str(folder), str(folder))
        for parent in ("/job", "/job/script", "/job/input"):
            yield from ("--perms", "0755", "--dir", parent)
        for mount in container["volumeMounts"]:
            kind = "--ro-bind" if mount.get("readOnly") else "--bind"
            yield from (kind, str(self._source(mount)), mount["mountPath"])
        yield from ("--remount-ro", "/", "--chdir", container["workingDir"])

    def _source(self, mount: dict[str, Any]) -> Path:
        (volume,) = (v for v in self.document["spec"]["volumes"] if v["name"] == mount["name"])
        if claim := volume.get("persistentVolumeClaim"):
            return self._claims[claim["claimName"]] / mount.get("subPath", "")
        folder = self._work / volume["name"]
        folder.mkdir(exist_ok=True)
        folder.chmod(0o777)
        return folder

    def status(self) -> dict[str, Any]:
        """The pod's status as the API shows it."""
        code = None if self._process is None else self._process.poll()
        (container,) = self.document["spec"]["containers"]
        shown = {"name": container["name"], "image": container["image"], "imageID": "sha256:0"}
        shown |= {"ready": code is None, "restartCount": 0}
        if self._process is None:
            return {"phase": "Pending"}
        if code is None:
            now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            return {
                "phase": "Running",
                "containerStatuses": [{**shown, "state": {"running": {"startedAt": now}}}],
            }
        code = code if code >= 0 else 128 - code
        ended = {"exitCode": code, "reason": "Error" if code else "Completed"}
        status: dict[str, Any] = {
            "phase": "Failed" if code or self._reason else "Succeeded",
            "containerStatuses": [{**shown, "state": {"terminated": ended}}],
        }
        return {**status, "reason": self._reason} if self._reason else status

    def log(self, tail_lines: int | None, limit_bytes: int | None) -> bytes:
        """The end of the log; of that, the beginning, as Kubernetes cuts it."""
        data = self._log.read_bytes() if self._log.exists() else b""
        lines = data.splitlines(keepends=True)
        if tail_lines is not None:
            lines = lines[-tail_lines:]
        return b"".join(lines)[:limit_bytes]

    def _expire(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._reason = "DeadlineExceeded"
            self.kill()

    def kill(self) -> None:
        """End the container with all its processes."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def delete(self) -> None:
        """End it and forget what it wrote into its own volumes."""
        self.kill()
        shutil.rmtree(self._work)


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """``$(NAME)`` replaced as the kubelet does it: unknown names stay, ``$$`` is ``$``."""

    def value(match: re.Match[str]) -> str:
        if match.group() == "$$":
            return "$"
        return variables.get(match.group(1), match.group())

    return _VARIABLE.sub(value, text)


def _become(user: str) -> list[str]:
    if os.geteuid() != 0:
        return []
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--no-new-privs"]
