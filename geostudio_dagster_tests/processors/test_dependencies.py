"""Packages that a script declares: from a folder of wheels, once, and only wheels."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import pytest

from geostudio_dagster.errors import TaskError
from geostudio_dagster.processors.dependencies import ensure_packages, lock_of
from geostudio_dagster.processors.run import ScriptJob, run_script
from geostudio_dagster.settings import ProcessorSettings, ScriptLimits
from geostudio_dagster_tests.conftest import write_scene
from geostudio_dagster_tests.processors.attacks.test_attacks import isolated_or_skip


def wheel(folder: Path, name: str, code: str) -> None:
    """A minimal wheel of one module."""
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", code)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture
def settings(tmp_path: Path) -> ProcessorSettings:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel(wheels, "tomatoes", "COLOUR = 'red'\n")
    canary = tmp_path / "ran"
    source = tmp_path / "setup.py"
    source.write_text(f"open({str(canary)!r}, 'w').write('setup.py ran')\n")
    with tarfile.open(wheels / "hostile-1.0.tar.gz", "w:gz") as archive:
        archive.add(source, "hostile-1.0/setup.py")
    return ProcessorSettings(allow_dependencies=True, wheel_folder=wheels)


def test_declared_packages_are_there_inside(tmp_path: Path, settings: ProcessorSettings) -> None:
    sandbox = isolated_or_skip()
    packages = ensure_packages(["tomatoes>=1", "numpy"], tmp_path / "packages", settings)
    assert packages is not None
    assert [path.name for path in packages.glob("*.py")] == [
        "tomatoes.py"
    ]  # numpy is there already
    scene = write_scene(tmp_path, "scene.tif", size=16, bands=("class",))
    script = tmp_path / "script.py"
    script.write_text(
        "import json, numpy, tomatoes\n"
        "if __name__ == '__main__':\n    print(json.dumps({'colour': tomatoes.COLOUR}))\n"
    )
    job = ScriptJob(script, scene, tmp_path / "run", "positional", packages=packages)
    assert run_script(job, ScriptLimits(), sandbox).printed == {"colour": "red"}


def test_they_are_installed_once(tmp_path: Path, settings: ProcessorSettings) -> None:
    root = tmp_path / "packages"
    first = ensure_packages(["tomatoes"], root, settings)
    assert settings.wheel_folder
    for path in settings.wheel_folder.iterdir():
        path.unlink()
    assert ensure_packages(["tomatoes"], root, settings) == first
    assert [path.name for path in root.iterdir()] == [lock_of(["tomatoes"])]


def test_no_code_of_a_package_runs(tmp_path: Path, settings: ProcessorSettings) -> None:
    with pytest.raises(TaskError, match="cannot be had") as caught:
        ensure_packages(["hostile"], tmp_path / "packages", settings)
    assert caught.value.code == "processor_packages"
    assert not (tmp_path / "ran").exists()
    assert list((tmp_path / "packages").iterdir()) == []


def test_not_allowed_any_more(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="does not allow"):
        ensure_packages(["tomatoes"], tmp_path, ProcessorSettings())
    assert ensure_packages([], tmp_path, ProcessorSettings()) is None


def test_the_lock_names_what_is_wanted() -> None:
    assert lock_of(["b>=1", "a"]) == lock_of(["a", "b >= 1"])
    assert lock_of(["a"]) != lock_of(["b"])
