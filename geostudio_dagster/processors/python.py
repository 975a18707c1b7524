"""The interpreter that scripts run with, and what of this machine it needs to see."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

# No site of the user's, no folder of the script's own on the path, bytecode never written, output
# at once: what a killed script has printed is what its author reads.
INTERPRETER = (sys.executable, "-I", "-B", "-u", "-X", "utf8")

# With packages of its own a script needs PYTHONPATH, which -I would ignore.
INTERPRETER_WITH_PATH = (sys.executable, "-s", "-P", "-B", "-u", "-X", "utf8")

_SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/sbin")


def system_folders() -> list[Path]:
    """Folders of the system's programs and libraries."""
    return [Path(name) for name in _SYSTEM if Path(name).exists()]


def python_folders() -> list[Path]:
    """Folders of the interpreter and its packages, none within another or the system's."""
    named = {
        sys.prefix,
        sys.base_prefix,
        *map(sysconfig.get_path, ("stdlib", "purelib", "platlib")),
    }
    folders = {Path(name) for name in named} | {Path(sys.executable).resolve().parent}
    system = system_folders()
    return sorted(
        folder
        for folder in folders
        if folder.is_dir()
        and not any(folder.is_relative_to(other) for other in system)
        and not any(folder != other and folder.is_relative_to(other) for other in folders)
    )


def is_visible(path: Path) -> bool:
    """Whether an isolated script sees ``path``."""
    return any(path.is_relative_to(folder) for folder in (*system_folders(), *python_folders()))
