"""Processors at the terminal: what is printed, and what the catalog holds then."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from geostudio_dagster.cli import app
from geostudio_dagster.installation import Installation
from geostudio_dagster.settings import Settings
from geostudio_dagster_tests.scripts import COUNT, DROP

Cli = Callable[..., Result]


@pytest.fixture
def cli(settings: Settings) -> Cli:
    """Runs ``processors`` with arguments, in the installation of the test."""

    def run(*arguments: str | Path) -> Result:
        return CliRunner().invoke(app, ["processors", *(str(word) for word in arguments)])

    return run


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "drop-class.py"
    path.write_text(DROP)
    return path


def test_upload_list_show_deprecate_delete(cli: Cli, script: Path, settings: Settings) -> None:
    done = cli("upload", script, "--parameters", '{"drop": 1}', "--description", "Drops a class.")
    assert done.exit_code == 0, done.output
    identifier, label, contract, digest = done.stdout.split()
    assert (label, contract) == ("drop-class@1", "positional")
    assert cli("upload", script, "--parameters", '{"drop": 1}').stdout.split()[0] == identifier

    script.write_text(COUNT)
    second = json.loads(cli("upload", script, "--position", "before_postprocess", "--json").stdout)
    assert (second["version"], second["contract"]) == (2, "flags")
    assert second["position"] == "before_postprocess"

    listed = json.loads(cli("list", "--json").stdout)
    assert [entry["version"] for entry in listed] == [2]
    assert len(json.loads(cli("list", "--all-versions", "--json").stdout)) == 2
    shown = json.loads(cli("show", "drop-class@1", "--json").stdout)
    assert shown["parameters"] == {"drop": 1}
    assert shown["sha256"].startswith(digest)
    assert shown["description"] == "Drops a class."
    assert shown["requests"] == []
    assert "drop-class" in cli("show", "drop-class").stdout

    assert cli("deprecate", "drop-class@2").stdout == "drop-class@2 is deprecated\n"
    assert json.loads(cli("show", "drop-class", "--json").stdout)["version"] == 1
    assert cli("delete", identifier).stdout == "drop-class@1 is deleted\n"
    gone = cli("show", "drop-class")
    assert gone.exit_code == 1
    assert "There is no processor drop-class" in gone.stderr
    scripts = list((settings.storage_root / "_processors").iterdir())
    assert [path.read_text() for path in scripts] == [COUNT]


def test_what_is_wrong_is_one_sentence(cli: Cli, script: Path, installation: Installation) -> None:
    script.write_text("print(1)")
    bad = cli("upload", script)
    assert bad.exit_code == 2
    assert "no entry point" in bad.stderr
    assert "Traceback" not in bad.stderr
    wrong = cli("upload", script, "--parameters", "[1]")
    assert wrong.exit_code == 2
    assert "--parameters: is not a JSON object" in wrong.stderr
    assert cli("upload", script.with_name("none.py")).exit_code == 2
    assert installation.catalog.processors() == (0, [])
