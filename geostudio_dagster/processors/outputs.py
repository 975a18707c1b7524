"""What a script left in its output folder: taken by name and kind, judged, never trusted.

Names, links and kinds of files are judged here, without opening anything by a path that the
script could have bent. What is in the files is judged in a sandbox, by ``inspection``.
"""

from __future__ import annotations

import itertools
import os
import re
import stat
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter, ValidationError

import geostudio_dagster
from geostudio_dagster.errors import TaskError
from geostudio_dagster.processors import inspection
from geostudio_dagster.processors.log import readable
from geostudio_dagster.processors.python import INTERPRETER_WITH_PATH
from geostudio_dagster.processors.run import open_to_all, supervised, surroundings
from geostudio_dagster.processors.sandbox import Room, Sandbox
from geostudio_dagster.processors.verdict import judged
from geostudio_dagster.processors.watch import megabytes
from geostudio_dagster.settings import ScriptLimits

Kind = Literal["raster", "vector", "table", "image", "file"]

_PACKAGE = Path(geostudio_dagster.__file__).parent
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,15}")
_LONGEST_NAME = 120
_DEEPEST = 8
_REPORT_BYTES = 4 * 1024**2
# Written beside a raster by GDAL itself; what they say is read from no other file afterwards.
_SIDE_CARS = (
    *(".aux.xml", ".aux", ".ovr", ".msk", ".rrd", ".rde"),
    *(".tfw", ".tifw", ".tiffw", ".wld"),
)
_OWN_USER = os.geteuid(), os.getegid()


@dataclass(frozen=True, slots=True)
class CollectedOutput:
    """One file that was taken.

    Attributes:
        name: a plain file name, unique among the run's outputs.
        path: where it lies now; a raster is a COG of its own.
        kind: raster, vector, table, image or file (kept as it is, not read).
        metadata: facts for people: size of the grid, number of features, columns.
    """

    name: str
    path: Path
    kind: Kind
    media_type: str
    size: int
    metadata: dict[str, Any] = field(default_factory=dict)


class _Entry(BaseModel):
    """What the inspection says of a file; it ran isolated, so it is not trusted either."""

    name: str
    kind: Kind
    media_type: str
    metadata: dict[str, Any] = {}
    problem: str = ""


_REPORT = TypeAdapter(list[_Entry])
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def collect(
    folder: Path,
    input_raster: Path,
    target: Path,
    limits: ScriptLimits,
    sandbox: Sandbox,
) -> list[CollectedOutput]:
    """Take the files of ``folder``, the output of a script that has ended, into ``target``.

    ``target`` must be an empty folder on the same file system. Rasters become COGs on their own
    grid or, without one, on that of ``input_raster``. Sorted by name; none is fine.

    Raises:
        TaskError: ``processor_output``, when there is a file that cannot be taken; which, and why.
        Unavailable: the sandbox could not be set up.
    """
    staged, made, kept = (target / name for name in ("staged", "made", "files"))
    for place in (staged, made, kept, target / "work"):
        place.mkdir(parents=True)
        place.chmod(0o755)
    names = _stage(folder, staged, limits)
    if not names:
        return []
    grid = open_to_all(input_raster, target)
    room = Room(Path(inspection.__file__), grid, made, target / "work", (_PACKAGE, staged))
    entries = _inspected(room, limits, sandbox)
    taken = []
    for name, original in sorted(names.items()):
        entry = entries.get(name)
        if entry is None or entry.problem:
            problem = entry.problem if entry else "could not be read"
            raise _refused(original, readable(problem.encode("utf-8", "replace")))
        source = (made if entry.kind == "raster" else staged) / name
        size = take(source.parent, name, kept / name, original)
        facts = {**entry.metadata, **({} if name == original else {"written_as": _shown(original)})}
        taken.append(CollectedOutput(name, kept / name, entry.kind, entry.media_type, size, facts))
    return taken


def _refused(name: str, problem: str) -> TaskError:
    return TaskError("processor_output", f"The processor's output {_shown(name)} {problem}.")


def _shown(name: str) -> str:
    return readable(name.encode("utf-8", "surrogateescape"))[:_LONGEST_NAME]


def _stage(folder: Path, staged: Path, limits: ScriptLimits) -> dict[str, str]:
    """Move what may be taken into ``staged`` under safe names; original name by safe name."""
    names: dict[str, str] = {}
    used: set[str] = set()
    total = 0
    for parent, name, relative in _walk(folder):
        if name.lower().endswith(_SIDE_CARS):
            continue
        if name.lower().endswith(".vrt"):
            raise _refused(relative, "is a VRT, which only refers to files: write a GeoTIFF")
        safe = safe_name(relative, used)
        used.add(safe.lower())
        names[safe] = relative
        if len(names) > limits.output_files:
            raise TaskError(
                "processor_output", f"The processor left more than {limits.output_files} files."
            )
        total += take(parent, name, staged / safe, relative)
        if total > limits.output_bytes:
            most = megabytes(limits.output_bytes)
            raise TaskError("processor_output", f"The processor left more than {most} of files.")
    return names


def _walk(folder: Path) -> Iterator[tuple[int, str, str]]:
    """Every regular file below ``folder``: descriptor of its folder, name, name from the top."""
    top = _opened(str(folder), os.O_DIRECTORY)
    try:
        yield from _walk_from(top, "", 0)
    finally:
        os.close(top)


def _walk_from(parent: int, prefix: str, depth: int) -> Iterator[tuple[int, str, str]]:
    with os.scandir(parent) as listing:
        names = sorted(entry.name for entry in listing)
    for name in names:
        relative = f"{prefix}{name}"
        mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
        if stat.S_ISREG(mode):
            yield parent, name, relative
        elif not stat.S_ISDIR(mode):
            raise _refused(relative, f"is {_KINDS.get(stat.S_IFMT(mode), 'no file')}: write a file")
        elif depth == _DEEPEST:
            raise _refused(relative, f"lies deeper than {_DEEPEST} folders")
        else:
            child = _opened(name, os.O_DIRECTORY, parent)
            try:
                yield from _walk_from(child, f"{relative}/", depth + 1)
            finally:
                os.close(child)


def take(parent: int | Path, name: str, target: Path, original: str) -> int:
    """Move one file, if it is nothing but a file, and make it this account's; its size.

    Args:
        parent: the folder that it lies in, a path or an open descriptor.
        original: what refusals call it.

    Raises:
        TaskError: ``processor_output``, it is something else.
    """
    owner = os.open(parent, os.O_RDONLY | os.O_DIRECTORY) if isinstance(parent, Path) else parent
    try:
        descriptor = _opened(name, os.O_NONBLOCK, owner)
    except OSError as error:
        raise _refused(original, f"cannot be read ({error.strerror})") from error
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise _refused(original, "is no file")
        if facts.st_nlink != 1:
            raise _refused(original, "has a second name (a hard link): write a file of its own")
        os.rename(name, target, src_dir_fd=owner)
        os.fchmod(descriptor, 0o644)
        if facts.st_uid != _OWN_USER[0]:
            os.fchown(descriptor, *_OWN_USER)
        return facts.st_size
    finally:
        os.close(descriptor)
        if owner != parent:
            os.close(owner)


def _opened(name: str, flags: int, parent: int | None = None) -> int:
    """Open a file or folder itself, never what a link stands for, also if its owner closed it."""
    flags |= os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags, dir_fd=parent)
    except PermissionError:
        bare = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            Path(f"/proc/self/fd/{bare}").chmod(0o700)
        finally:
            os.close(bare)
        return os.open(name, flags, dir_fd=parent)


def safe_name(relative: str, used: set[str]) -> str:
    """A plain ASCII file name of what the script chose, unlike those ``used`` in any case."""
    suffix = PurePosixPath(relative).suffix
    if not _SUFFIX.fullmatch(suffix):
        suffix = ""
    text = unicodedata.normalize("NFKD", relative.removesuffix(suffix))
    plain = _UNSAFE.sub("_", text.encode("ascii", "ignore").decode())
    stem = plain.strip("._-")[:_LONGEST_NAME] or "file"
    suffix = {".tiff": ".tif"}.get(suffix.lower(), suffix.lower())
    candidates = (
        f"{stem}{f'-{number + 1}' if number else ''}{suffix}" for number in itertools.count()
    )
    return next(name for name in candidates if name.lower() not in used)


def _inspected(room: Room, limits: ScriptLimits, sandbox: Sandbox) -> dict[str, _Entry]:
    """What the inspection says, by file name."""
    shown = sandbox.shown(room)
    package, staged = shown.extra
    command = [*INTERPRETER_WITH_PATH, shown.script, staged, shown.input, shown.output]
    variables = {**surroundings(shown.work, 2), "PYTHONPATH": str(Path(package).parent)}
    ending = supervised(room, [*command, str(limits.output_bytes)], variables, limits, sandbox)
    reason, message = judged(ending, {}, limits)
    if reason != "ok":
        sentence = message.removeprefix("The processor ")
        raise TaskError(
            "processor_output", f"The processor's files broke their reader: it {sentence}"
        )
    try:
        report = report_of(room.output, inspection.REPORT, _REPORT_BYTES)
        return {entry.name: entry for entry in _REPORT.validate_json(report)}
    except (OSError, ValidationError) as error:
        raise TaskError("processor_output", "The processor's files broke their reader.") from error


def report_of(folder: Path, name: str, most_bytes: int) -> bytes:
    """The begin of a file that an isolated program left, never of what a link stands for.

    Raises:
        OSError: there is none.
    """
    descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as stream:
        return stream.read(most_bytes)
