"""Vector files of many tasks joined in a sandbox: they are users', and are read whole."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sqlite3
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import TypeAdapter

import geostudio_dagster
from geostudio_dagster.errors import TaskError
from geostudio_dagster.processors import features
from geostudio_dagster.processors.features import Bounds, TaskFile, check_package
from geostudio_dagster.processors.outputs import report_of, take
from geostudio_dagster.processors.python import INTERPRETER_WITH_PATH
from geostudio_dagster.processors.run import supervised, surroundings
from geostudio_dagster.processors.sandbox import Room, Sandbox
from geostudio_dagster.processors.verdict import Ending, judged
from geostudio_dagster.settings import ScriptLimits

log = logging.getLogger(__name__)

_PACKAGE = Path(geostudio_dagster.__file__).parent
_MOST_BYTES = 64 * 1024**2  # of a report: a hundred for each of more files than a request has
_REPORT = TypeAdapter(list[Bounds | None])


def join_isolated(
    files: Sequence[TaskFile],
    target: Path,
    layer_name: str,
    *,
    folder: Path,
    limits: ScriptLimits,
    sandbox: Sandbox,
) -> tuple[Bounds | None, ...]:
    """:func:`features.join_features`, by a process that sees these files and reaches nothing.

    What that process leaves is trusted no more than the files: it is a GeoPackage of nothing but
    tables, or there is none.

    Args:
        folder: an empty folder on the target's file system; removing it is the caller's.

    Returns:
        West, south, east, north of each file's features, degrees; None where it has none. All
        are None where the files broke the process, with a warning that says how.

    Raises:
        Unavailable: the sandbox could not be set up.
    """
    room = _room(files, layer_name, folder)
    ending = _run(room, limits, sandbox)
    for line in ending.errors.text().splitlines():
        log.warning("%s: %s", layer_name, line)
    reason, message = judged(ending, {}, limits)
    if reason == "ok":
        try:
            return _taken(room.output, target, len(files))
        except (ValueError, TaskError, OSError, sqlite3.Error) as error:
            message = str(error)
            target.unlink(missing_ok=True)
    said = message.removeprefix("The processor ")
    log.warning("the features of %s cannot be joined: the join %s", layer_name, said)
    return (None,) * len(files)


def _run(room: Room, limits: ScriptLimits, sandbox: Sandbox) -> Ending:
    shown = sandbox.shown(room)
    package, given = shown.extra
    command = [*INTERPRETER_WITH_PATH, shown.script, shown.input, given, shown.output]
    variables = {**surroundings(shown.work, 2), "PYTHONPATH": str(Path(package).parent)}
    return supervised(room, command, variables, limits, sandbox)


def _room(files: Sequence[TaskFile], layer_name: str, folder: Path) -> Room:
    """Each file in a folder of its own, below one that the join may read."""
    given, made, work = (folder / name for name in ("given", "made", "work"))
    for place in (given, made, work):
        place.mkdir(parents=True)
        place.chmod(0o755)
    names = []
    for number, file in enumerate(files):
        place = given / str(number)
        place.mkdir()
        place.chmod(0o755)
        _show(file.path, place / file.path.name)
        names.append((file.task_id, f"{number}/{file.path.name}"))
    listing = folder / "listing.json"
    listing.write_text(json.dumps([layer_name, names]), "utf-8")
    listing.chmod(0o444)
    return Room(Path(features.__file__), listing, made, work, (_PACKAGE, given))


def _show(path: Path, place: Path) -> None:
    """Let the file be read at ``place``, also by the user that root becomes."""
    linked = False
    if os.geteuid() != 0 or path.stat().st_mode & stat.S_IROTH:
        with suppress(OSError):  # another file system, or one without links
            os.link(path, place)
            linked = True
    if not linked:
        shutil.copyfile(path, place)
        place.chmod(0o444)


def _taken(made: Path, target: Path, count: int) -> tuple[Bounds | None, ...]:
    """Bring the package to its place, if it is one; the bounds of each file's features.

    Raises:
        ValueError, TaskError, OSError, sqlite3.Error: it left something else.
    """
    bounds = _REPORT.validate_json(report_of(made, features.REPORT, _MOST_BYTES))
    if len(bounds) != count or not all(map(_on_globe, filter(None, bounds))):
        raise ValueError("does not say where the features are")
    if any(bounds):
        take(made, features.JOINED, target, features.JOINED)
        check_package(target)
    return tuple(bounds)


def _on_globe(bounds: Bounds) -> bool:
    west, south, east, north = bounds
    return -180 <= west <= east <= 180 and -90 <= south <= north <= 90  # noqa: PLR2004
