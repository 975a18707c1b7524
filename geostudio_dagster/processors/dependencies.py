"""Packages that a script declares in its header (PEP 723): installed once, wheels only.

No code of a package runs while it is installed: wheels are unpacked, nothing is built. They go
beside the packages that every script has, which keep their versions.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet

from geostudio_dagster.errors import TaskError
from geostudio_dagster.settings import ProcessorSettings

_INSTALL_S = 900
_MOST = 50


def check_requirements(wanted: Sequence[str], requires_python: str, *, allowed: bool) -> list[str]:
    """What stands against a script's header, one sentence each."""
    problems = []
    if wanted and not allowed:
        problems.append(
            "The script declares packages, which this installation does not allow: remove its "
            "dependency header, or ask for GEOSTUDIO_PROCESSORS__ALLOW_DEPENDENCIES=true."
        )
    if len(wanted) > _MOST:
        problems.append(f"The script declares {len(wanted)} packages; at most {_MOST} are taken.")
    problems += filter(None, map(_requirement_problem, wanted[:_MOST]))
    try:
        fits = platform.python_version() in SpecifierSet(requires_python)
    except InvalidSpecifier:
        return [*problems, f"requires-python {requires_python!r} is no version specifier."]
    if not fits:
        version = platform.python_version()
        problems.append(f"The script needs Python {requires_python}; this is {version}.")
    return problems


def _requirement_problem(text: str) -> str:
    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        return f"The dependency {text[:80]!r} is no package name with versions."
    if requirement.url:
        return f"The dependency {requirement.name} names an address; name a version instead."
    return ""


def lock_of(requirements: Sequence[str]) -> str:
    """Name of the environment that holds ``requirements`` for this interpreter."""
    named = sorted(str(Requirement(text)) for text in requirements)
    facts = [*named, platform.python_version(), platform.machine(), sys.prefix]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:24]


def ensure_packages(
    requirements: Sequence[str], root: Path, settings: ProcessorSettings
) -> Path | None:
    """Folder of the packages, installed the first time; None when nothing is declared.

    Raises:
        TaskError: they are not allowed (any more), or cannot be had as wheels.
    """
    if not requirements:
        return None
    if problems := check_requirements(requirements, "", allowed=settings.allow_dependencies):
        raise TaskError("processor_packages", problems[0])
    target = root / lock_of(requirements)
    if target.is_dir():
        return target
    root.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".partial-", dir=root))
    try:
        _install(requirements, scratch, settings)
        scratch.chmod(0o755)
        try:
            scratch.rename(target)
        except OSError:
            if not target.is_dir():  # else another run was first, with the same packages
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _install(requirements: Sequence[str], folder: Path, settings: ProcessorSettings) -> None:
    """Ask pip what is missing here, then unpack just that."""
    report = folder / ".report.json"
    common = ["--only-binary", ":all:", *_source(settings)]
    asked = ["--dry-run", "--report", str(report), *common]
    _pip([*asked, "--", *requirements])
    wheels = [item["download_info"]["url"] for item in json.loads(report.read_text())["install"]]
    report.unlink()
    if wheels:
        _pip(["--no-deps", "--no-compile", "--target", str(folder), *common, "--", *wheels])


def _source(settings: ProcessorSettings) -> list[str]:
    if settings.wheel_folder:
        return ["--no-index", "--find-links", str(settings.wheel_folder)]
    return ["--index-url", settings.index_url] if settings.index_url else []


def _pip(arguments: Sequence[str]) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", *arguments]
    environment = {name: value for name, value in os.environ.items() if "GEOSTUDIO" not in name}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=_INSTALL_S,
            env=environment,
        )
    except subprocess.TimeoutExpired as error:
        raise TaskError(
            "processor_packages", "Installing the script's packages took too long.", retryable=True
        ) from error
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        last = said[-1].removeprefix("ERROR: ") if said else f"pip ended with {done.returncode}"
        raise TaskError("processor_packages", f"The script's packages cannot be had: {last}.")
