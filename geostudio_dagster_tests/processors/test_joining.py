"""The join of users' vector files sees those and nothing else, and is not trusted itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from shapely.geometry import Point

from geostudio_dagster.processors import features
from geostudio_dagster.processors.features import Bounds, TaskFile, join_features
from geostudio_dagster.processors.joining import join_isolated
from geostudio_dagster.processors.sandbox import Sandbox
from geostudio_dagster.settings import ScriptLimits
from geostudio_dagster_tests.processors.attacks.test_attacks import isolated_or_skip
from geostudio_dagster_tests.publish.test_vectors import files, geojson


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return isolated_or_skip()


def join(given: list[TaskFile], folder: Path, sandbox: Sandbox) -> tuple[Bounds | None, ...]:
    return join_isolated(
        given,
        folder / "joined.gpkg",
        "fields",
        folder=folder / "join",
        limits=ScriptLimits(),
        sandbox=sandbox,
    )


def test_isolated_the_join_makes_the_same_bytes(
    tmp_path: Path, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    given = files(tmp_path)
    before = {file.path: file.path.read_bytes() for file in given}
    bounds = join_features(given, tmp_path / "here.gpkg", "fields")
    assert join(given, tmp_path, sandbox) == bounds
    assert (tmp_path / "joined.gpkg").read_bytes() == (tmp_path / "here.gpkg").read_bytes()
    assert {path: path.read_bytes() for path in before} == before
    assert "fields: e.gpkg is left out" in caplog.text  # told outside, too


def test_files_of_the_same_name_are_told_apart(tmp_path: Path, sandbox: Sandbox) -> None:
    given = []
    for number in range(2):
        folder = tmp_path / f"task_{number}"
        folder.mkdir()
        path = geojson(folder / "f.geojson", (Point(number, 1), {}))
        path.chmod(0o600)  # another user could not read it
        given.append(TaskFile(f"task_{number}", path))
    assert join(given, tmp_path, sandbox) == ((0, 1, 0, 1), (1, 1, 1, 1))


def test_without_features_there_is_no_package(tmp_path: Path, sandbox: Sandbox) -> None:
    empty = TaskFile("t", geojson(tmp_path / "empty.geojson"))
    assert join([empty], tmp_path, sandbox) == (None,)
    assert not (tmp_path / "joined.gpkg").exists()


# A reader that a file took over: what it does, and what is said of it.
REPORT = "(made / 'report.json').write_text('[[5, 6, 5, 6]]')"
WITH_A_VIEW = (
    "import shutil, sqlite3; shutil.copy(next(given.rglob('*.gpkg')), made / 'joined.gpkg');"
    " base = sqlite3.connect(made / 'joined.gpkg');"
    " base.execute('CREATE VIEW v AS SELECT 1'); base.commit()"
)
TAKEN_OVER = {
    "reads another file": (
        "(made / 'joined.gpkg').write_bytes(secret.read_bytes())",
        "No such file or directory",
    ),
    "reaches the network": (
        "import socket; socket.create_connection(('1.1.1.1', 53))",
        "Network is unreachable",
    ),
    "changes what it reads": (
        "next(given.rglob('*.geojson')).write_text('changed')",
        "Read-only file system",
    ),
    "leaves a link": (
        f"(made / 'joined.gpkg').symlink_to(secret); {REPORT}",
        "cannot be read",
    ),
    "leaves another kind of file": (
        f"(made / 'joined.gpkg').write_text('<OGRVRTDataSource>'); {REPORT}",
        "it is no GeoPackage",
    ),
    "leaves a program": (
        f"{WITH_A_VIEW}; {REPORT}",
        "it has a view or virtual table, v",
    ),
    "leaves a report of other files": (
        "(made / 'report.json').write_text('[null, null]')",
        "does not say where the features are",
    ),
    "leaves a place that is none": (
        "(made / 'report.json').write_text('[[500, 6, 500, 6]]')",
        "does not say where the features are",
    ),
    "leaves no report": ("pass", "No such file or directory"),
    "breaks": ("import os; os.abort()", "was ended by SIGABRT"),
}


@pytest.mark.parametrize("kind", TAKEN_OVER)
def test_a_join_that_a_file_took_over_gets_and_gives_nothing(
    tmp_path: Path,
    sandbox: Sandbox,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    act, said = TAKEN_OVER[kind]
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    source = geojson(tmp_path / "f.geojson", (Point(5, 6), {}))
    if kind == "leaves a program":
        join_features([TaskFile("t", source)], tmp_path / "f.gpkg", "x")
        source = tmp_path / "f.gpkg"
    hostile = tmp_path / "program" / "features.py"
    hostile.parent.mkdir()
    hostile.write_text(
        "import sys\nfrom pathlib import Path\n"
        "_, given, made = map(Path, sys.argv[1:])\n"
        f"secret = Path({str(secret)!r})\n{act}\n"
    )
    monkeypatch.setattr(features, "__file__", str(hostile))
    content = source.read_bytes()
    assert join([TaskFile("t", source)], tmp_path, sandbox) == (None,)
    assert said in caplog.text
    assert not (tmp_path / "joined.gpkg").exists()
    assert (secret.read_text(), source.read_bytes()) == ("hunter2", content)
