"""A file is either absent or complete, whatever happens to the process that writes it."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest

from geostudio_dagster.errors import NotFound
from geostudio_dagster.storage import LocalStorage, request_key, sha256_of, task_key

KEY = "request/task/task_pred.tif"
OLD, NEW = b"old" * 100_000, b"new" * 200_000

# Dies at the n-th thing that the interpreter does in commit: open, rename, mkdir ...
DIES = """
import os, signal, sys
from pathlib import Path
from geostudio_dagster.storage import LocalStorage
root, how, moment = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
storage = LocalStorage(root)
source = storage.scratch("work") / "file"
source.write_bytes(b"new" * 200_000)
left = moment
def hook(event, arguments):
    global left
    left -= 1
    if left == -1:
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
if how == "file":
    storage.commit(source, "request/task/task_pred.tif")
else:
    storage.commit_bytes(b"new" * 200_000, "request/task/task_pred.tif")
left = -2
"""


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "storage")


def scratch_file(storage: LocalStorage, content: bytes, name: str = "work") -> Path:
    path = storage.scratch(name) / "file"
    path.write_bytes(content)
    return path


def files(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def test_a_commit_moves_the_file_and_tells_its_digest(storage: LocalStorage) -> None:
    source = scratch_file(storage, NEW)
    stored = storage.commit(source, KEY)
    assert (stored.key, stored.size) == (KEY, len(NEW))
    assert stored.sha256 == hashlib.sha256(NEW).hexdigest() == sha256_of(storage.path(KEY))
    assert not source.exists()
    assert storage.exists(KEY)
    assert storage.read_bytes(KEY) == NEW
    assert storage.uri(KEY) == storage.path(KEY).as_uri()


def test_committing_again_replaces(storage: LocalStorage) -> None:
    storage.commit(scratch_file(storage, OLD), KEY)
    with storage.path(KEY).open("rb") as reader:
        storage.commit(scratch_file(storage, NEW), KEY)
        assert reader.read() == OLD, "who reads goes on with the file that it opened"
    assert storage.read_bytes(KEY) == NEW
    storage.commit_bytes(OLD, KEY)
    assert storage.read_bytes(KEY) == OLD
    assert files(storage.root) == [KEY]


def test_bytes_leave_nothing_behind(storage: LocalStorage, tmp_path: Path) -> None:
    stored = storage.commit_bytes(NEW, "request/tasks.geojson")
    assert stored.sha256 == hashlib.sha256(NEW).hexdigest()
    assert files(tmp_path) == ["storage/request/tasks.geojson"]


@pytest.mark.parametrize("how", ["file", "bytes"])
def test_killed_at_any_moment_leaves_the_old_file_or_the_new_one(tmp_path: Path, how: str) -> None:
    seen = set()
    for moment in count():
        root = tmp_path / str(moment) / "storage"
        storage = LocalStorage(root)
        storage.commit_bytes(OLD, KEY)
        code = subprocess.run(
            [sys.executable, "-c", DIES, str(root), how, str(moment)], check=False
        ).returncode
        assert code in (0, -signal.SIGKILL)
        assert files(root) == [KEY]
        content = storage.read_bytes(KEY)
        assert content in (OLD, NEW)
        seen.add((code, content))
        storage.commit(scratch_file(storage, NEW), KEY)
        assert storage.read_bytes(KEY) == NEW
        if code == 0:
            break
    assert seen == {(-signal.SIGKILL, OLD), (-signal.SIGKILL, NEW), (0, NEW)}


def test_many_writers_of_one_key_leave_one_whole_file(storage: LocalStorage) -> None:
    contents = [bytes([number]) * 100_000 for number in range(8)]
    with ThreadPoolExecutor(len(contents)) as pool:
        stored = list(pool.map(lambda content: storage.commit_bytes(content, KEY), contents))
    assert {item.sha256 for item in stored} == {
        hashlib.sha256(content).hexdigest() for content in contents
    }
    assert storage.read_bytes(KEY) in contents
    assert files(storage.root) == [KEY]


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/",
        ".",
        "..",
        "../x",
        "a/../b",
        "a/..",
        "/etc/passwd",
        "//host/x",
        "a/.hidden",
        "a b",
        "a\\b",
        "a\0b",
        "a\n",
        "a:b",
        "é",
        "a" * 201,
        "file:///etc/passwd",
    ],
)
def test_keys_that_could_leave_the_storage_are_refused(
    storage: LocalStorage, tmp_path: Path, key: str
) -> None:
    source = scratch_file(storage, NEW)
    with pytest.raises(ValueError, match="is not a storage key"):
        storage.path(key)
    with pytest.raises(ValueError, match="is not a storage key"):
        storage.commit(source, key)
    with pytest.raises(ValueError, match="is not a storage key"):
        storage.commit_bytes(NEW, key)
    with pytest.raises(ValueError, match="is not a storage key"):
        storage.delete(key)
    assert source.read_bytes() == NEW
    assert files(tmp_path) == ["scratch/work/file"]


def test_keys_of_tasks_and_requests_lie_below_their_request(storage: LocalStorage) -> None:
    assert task_key("r", "r-task_0", "x.tif") == "r/r-task_0/x.tif"
    assert request_key("r", "r_tasks.geojson") == "r/r_tasks.geojson"
    assert storage.path(task_key("r", "t", "x.tif")) == storage.root / "r" / "t" / "x.tif"


def test_scratch_is_fresh_every_time(storage: LocalStorage) -> None:
    left = scratch_file(storage, OLD)
    assert left.exists()
    again = storage.scratch("work")
    assert list(again.iterdir()) == []
    assert not again.is_relative_to(storage.root)
    storage.discard_scratch("work")
    assert not again.exists()
    storage.discard_scratch("work")  # there is nothing to discard, and that is fine


def test_the_scratch_of_two_runs_is_apart(storage: LocalStorage) -> None:
    first = storage.scratch("work", "run-1")
    (first / "file").write_bytes(OLD)
    second = storage.scratch("work", "run-2")
    assert list(second.iterdir()) == []
    assert first != second
    storage.discard_scratch("work", "run-1")
    assert second.exists()


def test_what_is_not_there(storage: LocalStorage) -> None:
    assert not storage.exists(KEY)
    with pytest.raises(NotFound, match=KEY):
        storage.read_bytes(KEY)
    storage.delete(KEY)


def test_deleting_a_file_or_a_folder(storage: LocalStorage) -> None:
    storage.commit_bytes(OLD, "r/a/x")
    storage.commit_bytes(OLD, "r/b/x")
    storage.delete("r/a/x")
    assert files(storage.root) == ["r/b/x"]
    storage.delete("r")
    assert files(storage.root) == []
