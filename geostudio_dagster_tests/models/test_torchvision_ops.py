from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from geostudio_dagster.models.torchvision_ops import HOOK, install, library_loads, main, remove


def python(code: str, site: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter, with ``site`` as one more site-packages folder."""
    prelude = f"import site; site.addsitedir({str(site)!r})\n" if site else ""
    environment = {key: text for key, text in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-c", prelude + code],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


def test_the_hook_costs_no_import_of_torch(tmp_path: Path) -> None:
    install(tmp_path)
    process = python("import sys, json; sys.exit(int('torch' in sys.modules))", tmp_path)
    assert process.returncode == 0, process.stderr


def test_torchvision_imports_where_the_hook_is(tmp_path: Path) -> None:
    needed = install(tmp_path)
    assert needed is not library_loads()
    code = (
        "import torchvision, torch\n"
        "print(torchvision.__version__, torch.ops.torchvision.nms is not None)"
    )
    process = python(code, tmp_path)
    assert process.returncode == 0, process.stderr
    assert process.stdout.endswith(" True\n")


def test_looking_for_torchvision_imports_no_torch(tmp_path: Path) -> None:
    install(tmp_path)
    code = (
        "import importlib.util, sys\n"
        "assert importlib.util.find_spec('torchvision')\n"
        "sys.exit(int('torch' in sys.modules))"
    )
    process = python(code, tmp_path)
    assert process.returncode == 0, process.stderr


def test_hook_and_ensuring_go_together(tmp_path: Path) -> None:
    install(tmp_path)
    code = (
        "from geostudio_dagster.models.torchvision_ops import ensure_torchvision\n"
        "ensure_torchvision()\n"
        "import torchvision\n"
        "ensure_torchvision()"
    )
    process = python(code, tmp_path)
    assert process.returncode == 0, process.stderr


def test_ensuring_lets_torchvision_import_without_a_hook() -> None:
    code = (
        "from geostudio_dagster.models.torchvision_ops import ensure_torchvision\n"
        "first = ensure_torchvision(); second = ensure_torchvision()\n"
        "assert first == second\n"
        "import torchvision"
    )
    process = python(code)
    assert process.returncode == 0, process.stderr


def test_removing_leaves_nothing(tmp_path: Path) -> None:
    install(tmp_path)
    remove(tmp_path)
    remove(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(library_loads(), reason="torchvision fits this torch, so no hook is written")
def test_the_hook_is_written_where_torchvision_does_not_fit(tmp_path: Path) -> None:
    assert install(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"{HOOK}.py", f"{HOOK}.pth"}
    assert install(tmp_path)


def test_anything_but_install_or_remove_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help-me"]) == 2
    assert "usage:" in capsys.readouterr().err
