"""Machines that allow their processes less."""

from __future__ import annotations

import os

from geostudio_dagster.processors.rlimits import tool


def bounded(*limits: str) -> list[str]:
    """The command that starts others with these of prlimit's limits, which they cannot raise."""
    command = [tool("prlimit"), *limits]
    if os.geteuid() != 0:
        return command
    without = ("--bounding-set=-sys_resource", "--inh-caps=-sys_resource")
    return [tool("setpriv"), *without, *command]
