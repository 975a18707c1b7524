"""torchvision beside a torch that it was not built for.

PyPI's torchvision is a CUDA build. Beside a CPU build of torch its library of operators doesn't
load, and ``import torchvision`` then fails with "operator torchvision::nms does not exist",
although TerraTorch never calls these operators. Declaring them (schemas only) lets the import
pass; calling one still fails. Where torchvision's library loads, nothing is done.

``python -m geostudio_dagster.models.torchvision_ops --install`` does the same for every program
of a virtual environment, such as the ``terratorch`` command: it writes a hook into site-packages
that acts when torchvision is imported. ``--remove`` takes it out again.
"""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from contextlib import suppress
from pathlib import Path
from typing import Any

HOOK = "_geostudio_torchvision_ops"

# The operators that torchvision registers something for as it is imported, loaded or not.
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

_kept: list[Any] = []  # schemas go when their Library object does


def library_loads() -> bool:
    """Whether torchvision's own operators can be loaded into this torch (or are already)."""
    import torch

    path = _library()
    if path is None:
        return True  # no torchvision, or one without operators: nothing to mend
    try:
        torch.ops.load_library(str(path))  # type: ignore[no-untyped-call]
    except OSError:
        return False
    return True


def ensure_torchvision() -> bool:
    """Declare torchvision's operators if its library doesn't load; whether that was needed."""
    if _kept or "torchvision" in sys.modules or library_loads():
        return bool(_kept)
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for schema in SCHEMAS:
        with suppress(RuntimeError):  # declared already
            library.define(schema)  # type: ignore[no-untyped-call]
    _kept.append(library)
    return True


def install(site_packages: Path | None = None) -> bool:
    """Make every program of this environment declare the operators, if it needs to.

    Returns:
        Whether the hook is there now: only where torchvision's library doesn't load.
    """
    folder = site_packages or _site_packages()
    if library_loads():
        remove(folder)
        return False
    (folder / f"{HOOK}.py").write_text(_hook_source(), "utf-8")
    (folder / f"{HOOK}.pth").write_text(f"import {HOOK}\n", "utf-8")
    return True


def remove(site_packages: Path | None = None) -> None:
    """Take the hook out again, if it is there."""
    folder = site_packages or _site_packages()
    for suffix in (".pth", ".py"):
        (folder / f"{HOOK}{suffix}").unlink(missing_ok=True)


def _library() -> Path | None:
    spec = importlib.util.find_spec("torchvision")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        found = sorted(Path(folder).glob("_C.*"))
        if found:
            return found[0]
    return None


def _site_packages() -> Path:
    return Path(sysconfig.get_path("purelib"))


def _hook_source() -> str:
    """A module that stands alone: the environment may lose this package."""
    return _HOOK_SOURCE.replace("SCHEMAS", repr(SCHEMAS))


_HOOK_SOURCE = '''"""Declares torchvision's operators where its library doesn't load.

Written by geostudio_dagster.models.torchvision_ops, which tells why; --remove takes it out.
"""

import sys


class _Finder:
    """Finds torchvision as Python itself would; acts just before its code runs."""

    kept = None

    def find_spec(self, name, path=None, target=None):
        if name != "torchvision":
            return None
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def exec_module(module):
            _mend(spec)
            run(module)

        spec.loader.exec_module = exec_module
        return spec


def _mend(spec):
    from pathlib import Path

    import torch

    for library in sorted(Path(spec.submodule_search_locations[0]).glob("_C.*")):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            _declare(torch)
        break


def _declare(torch):
    _Finder.kept = torch.library.Library("torchvision", "FRAGMENT")
    for schema in SCHEMAS:
        try:
            _Finder.kept.define(schema)
        except RuntimeError:
            pass  # declared already


sys.meta_path.insert(0, _Finder())
'''


def main(arguments: list[str]) -> int:
    """Install or remove the hook; the process's exit code."""
    if arguments == ["--install"]:
        state = "installed" if install() else "not needed"
    elif arguments == ["--remove"]:
        remove()
        state = "removed"
    else:
        sys.stderr.write("usage: python -m geostudio_dagster.models.torchvision_ops --install\n")
        return 2
    sys.stdout.write(f"torchvision operators: {state}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
