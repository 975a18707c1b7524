"""Every attack ends as it must, and nothing outside is read, reached, changed or left."""

from __future__ import annotations

import hashlib
import os
import platform
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from geostudio_dagster.errors import TaskError, Unavailable
from geostudio_dagster.processors.bubblewrap import BubblewrapSandbox
from geostudio_dagster.processors.outputs import CollectedOutput, collect
from geostudio_dagster.processors.run import ScriptJob, ScriptResult, run_script
from geostudio_dagster.processors.sandbox import Sandbox, choose_sandbox
from geostudio_dagster.removal import remove_tree
from geostudio_dagster.settings import ProcessorSettings, ScriptLimits
from geostudio_dagster_tests.conftest import write_scene
from geostudio_dagster_tests.processors.attacks.attack import Attack
from geostudio_dagster_tests.processors.attacks.exhausting import EXHAUSTING
from geostudio_dagster_tests.processors.attacks.formats import FORMATS
from geostudio_dagster_tests.processors.attacks.hiding import HIDING
from geostudio_dagster_tests.processors.attacks.leaving import LEAVING
from geostudio_dagster_tests.processors.attacks.prying import PRYING

SECRET = "canary-7f3a91"
MIB = 1024**2
CORPUS = [*PRYING, *HIDING, *EXHAUSTING, *LEAVING, *FORMATS]
# Root's own number in a user namespace is never used; there, a script would come closest to harm.
AS_ROOT = ["environment", "catalog", "socket_out", "become_root", "write_outside", "namespaces"]
LIMITS: dict[str, Any] = {
    # Far more than any of them needs on a busy machine; those that are to run out have less.
    "cpu_s": 60.0,
    "wall_s": 120.0,
    "memory_bytes": 256 * MIB,
    "file_bytes": 20 * MIB,
    "output_bytes": 40 * MIB,
    "output_files": 20,
    "processes": 16,
    "temporary_bytes": 8 * MIB,
    "log_bytes": 64 * 1024,
}


@dataclass
class Outside:
    """What no script may read, reach or change."""

    folder: Path
    input: Path
    port: int
    abstract: str
    connections: list[str] = field(default_factory=list)

    @property
    def secrets(self) -> list[Path]:
        return [self.folder / "catalog.db", self.folder / ".aws" / "credentials"]

    def state(self) -> dict[str, str]:
        """Digest of everything in the folder."""
        return {
            str(path.relative_to(self.folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        }


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outside]:
    folder = tmp_path_factory.mktemp("outside")
    folder.chmod(0o777)  # what protects it must be the sandbox
    scene = write_scene(folder, "scene_pred.tif", size=64, bands=("class",))
    listener = socket.create_server(("127.0.0.1", 0))
    local = socket.socket(socket.AF_UNIX)
    local.bind(f"\0{SECRET}-{os.getpid()}")
    local.listen()
    found = Outside(folder, scene, listener.getsockname()[1], f"{SECRET}-{os.getpid()}")
    for path in found.secrets:
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"secret = {SECRET}")
        path.chmod(0o666)
    for server in (listener, local):
        threading.Thread(target=_count, args=(server, found.connections), daemon=True).start()
    yield found
    for server in (listener, local):
        server.shutdown(socket.SHUT_RDWR)
        server.close()


def _count(server: socket.socket, connections: list[str]) -> None:
    while True:
        try:
            server.accept()[0].close()
        except OSError:
            return
        connections.append("came")


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return isolated_or_skip()


def isolated_or_skip() -> Sandbox:
    try:
        return choose_sandbox(ProcessorSettings())
    except Unavailable as error:
        pytest.skip(str(error))


@dataclass
class Aftermath:
    result: ScriptResult
    taken: list[CollectedOutput]
    refusal: str


def strike(attack: Attack, outside: Outside, sandbox: Sandbox, folder: Path) -> Aftermath:
    """Run the attack as the platform would, and take what it left."""
    if attack.machine and attack.machine != platform.machine():
        pytest.skip(f"it knows the system calls of {attack.machine}")
    script = folder / f"attack_{attack.name}.py"
    script.write_text(attack.code)
    limits = ScriptLimits(**{**LIMITS, **attack.limits})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        free_port = free.getsockname()[1]
    parameters = {
        "secrets": [str(path) for path in outside.secrets],
        "port": outside.port,
        "free_port": free_port,
        "abstract": outside.abstract,
        "pid": os.getpid(),
    }
    job = ScriptJob(script, outside.input, folder / "run", "positional", parameters)
    result = run_script(job, limits, sandbox)
    taken, refusal = [], ""
    if result.reason == "ok":
        try:
            taken = collect(result.output, outside.input, folder / "taken", limits, sandbox)
        except TaskError as error:
            refusal = str(error)
    return Aftermath(result, taken, refusal)


def assert_ended(attack: Attack, after: Aftermath) -> None:
    result = after.result
    assert result.reason in attack.reasons, (result.message, result.log[-2000:])
    told = f"{result.message}\n{result.log}"
    for words in attack.says:
        assert words in told
    got = [line for line in told.splitlines() if " GOT " in line]
    assert [line for line in got if not line.startswith(attack.may_get or ("\0",))] == []
    if isinstance(attack.collected, str):
        assert attack.collected in after.refusal
    else:
        assert after.refusal == ""
        assert tuple(output.name for output in after.taken) == attack.collected


def assert_nothing_leaked(attack: Attack, after: Aftermath, folder: Path) -> None:
    result = after.result
    assert SECRET not in f"{result.message}{result.log}{result.printed}".replace(
        f"{SECRET}-{os.getpid()}", ""
    )
    assert len(result.log) <= 4 * LIMITS["log_bytes"]
    assert all(c in "\n\t" or c.isprintable() for c in result.log + result.message)
    for output in after.taken:
        assert output.path.is_file() and not output.path.is_symlink()
        assert SECRET.encode() not in output.path.read_bytes()
    assert processes_of(f"attack_{attack.name}.py") == []
    for place in ("output", "work"):
        assert not list((folder / "run" / place).glob("*core*"))


def processes_of(name: str) -> list[str]:
    """Command lines of living processes that name the script."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if any(word.endswith(f"/script/{name}") for word in line):
            found.append(" ".join(line))
    return found


@pytest.mark.parametrize("attack", CORPUS, ids=lambda attack: attack.name)
def test_attack(
    attack: Attack,
    outside: Outside,
    sandbox: Sandbox,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GEOSTUDIO_DATABASE_URL", f"postgresql://x:{SECRET}@db/catalog")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    before, connections = outside.state(), len(outside.connections)
    after = strike(attack, outside, sandbox, tmp_path)
    assert_ended(attack, after)
    assert_nothing_leaked(attack, after, tmp_path)
    assert outside.state() == before
    assert len(outside.connections) == connections
    assert not Path("/evil").exists()
    remove_tree(tmp_path)
    assert not tmp_path.exists(), "whatever it left can be removed"


@pytest.mark.parametrize(
    "attack", [attack for attack in CORPUS if attack.name in AS_ROOT], ids=lambda a: a.name
)
def test_the_same_in_a_user_namespace(
    attack: Attack, outside: Outside, sandbox: Sandbox, tmp_path: Path
) -> None:
    assert isinstance(sandbox, BubblewrapSandbox)
    unprivileged = BubblewrapSandbox(sandbox.program, user_namespace=True)
    before, connections = outside.state(), len(outside.connections)
    after = strike(attack, outside, unprivileged, tmp_path)
    assert_ended(attack, after)
    assert_nothing_leaked(attack, after, tmp_path)
    assert outside.state() == before
    assert len(outside.connections) == connections
