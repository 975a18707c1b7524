"""What a sandbox offers, and which one this installation uses."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from geostudio_dagster.errors import Unavailable
from geostudio_dagster.settings import ProcessorSettings, ScriptLimits


@dataclass(frozen=True, slots=True)
class Room:
    """The places of one run on this machine: what it may read and the two folders it may fill.

    ``extra`` are further folders or files it may read, such as its own packages.
    """

    script: Path
    input: Path
    output: Path
    work: Path
    extra: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Shown:
    """The same places as the script sees them."""

    script: str
    input: str
    output: str
    work: str
    extra: tuple[str, ...] = ()


class Confined(Protocol):
    """A started program."""

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process that this one started, with pipes for standard output and error."""

    @property
    def memory_folders(self) -> Sequence[Path]:
        """Its own folders in memory, as this machine reaches them."""

    def processes(self) -> list[int]:
        """All its living processes, as this machine numbers them."""

    def kill(self) -> None:
        """End every process of it at once; none is asked to."""

    def finish(self) -> int | None:
        """Wait until none of its processes lives; the exit code (128 + n for signal n).

        None means that the program never started; standard error says why.
        """


class Sandbox(Protocol):
    """Runs a program as if it were hostile."""

    @property
    def name(self) -> str:
        """``bubblewrap`` or ``rlimits``; people see which one was used."""

    def shown(self, room: Room) -> Shown:
        """Where a script finds the places of ``room``."""

    def start(
        self,
        room: Room,
        command: Sequence[str],
        environment: Mapping[str, str],
        limits: ScriptLimits,
    ) -> Confined:
        """Start ``command`` (in the script's paths) with exactly this environment."""


def choose_sandbox(settings: ProcessorSettings, *, hidden: Sequence[Path] = ()) -> Sandbox:
    """The sandbox that the settings ask for; ``hidden`` are folders that no script may see.

    Raises:
        Unavailable: this machine cannot isolate as the settings want.
    """
    from geostudio_dagster.processors.bubblewrap import working_bubblewrap
    from geostudio_dagster.processors.rlimits import RlimitSandbox

    if settings.isolation == "rlimits":
        return RlimitSandbox()
    found = working_bubblewrap(tuple(hidden))
    if isinstance(found, str):
        raise Unavailable(
            f"Users' scripts cannot be isolated on this machine: {found}. Install bubblewrap and "
            "allow it namespaces, or accept weaker isolation by name with "
            "GEOSTUDIO_PROCESSORS__ISOLATION=rlimits."
        )
    return found
