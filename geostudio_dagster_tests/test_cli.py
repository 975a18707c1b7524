"""The command line as a person and as a script uses it: what is printed where, and exit codes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from geostudio_dagster.catalog import ModelRecord, Plan, PlannedTask
from geostudio_dagster.cli import app
from geostudio_dagster.installation import Installation
from geostudio_dagster.settings import Settings

NOBODY = "6238a5ea-781a-431e-8668-b0de515ea0c8"
URL = "https://example.org/scene.tif"

Cli = Callable[..., Result]


@pytest.fixture
def cli(settings: Settings) -> Cli:
    """Runs the program with arguments, in the installation of the test."""

    def run(*arguments: str | Path, stdin: str | None = None) -> Result:
        return CliRunner().invoke(app, [str(word) for word in arguments], input=stdin)

    return run


def document(**changes: Any) -> dict[str, Any]:
    return {"model": "demo-land-cover", "spatial_domain": {"urls": [URL]}, **changes}


def submitted(installation: Installation, model: ModelRecord, *, tasks: int = 0) -> str:
    """A request of the catalog, planned into some tasks."""
    request = installation.catalog.create_request(
        request_id=None, spec=document(), model_id=model.id, owner="tests"
    )
    if tasks:
        planned = tuple(
            PlannedTask(
                id=f"{request.id}-task_{n}",
                url=f"{URL}?{n}",
                date=None,
                shard=n,
                window=None,
                scene_size=None,
                footprint=None,
                pixels=None,
                steps=("url-connector", "push-to-geoserver"),
            )
            for n in range(tasks)
        )
        installation.catalog.record_plan(request.id, Plan(planned, tasks, {}))
    return request.id


def counted(figures: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in figures.items() if count}


def refused(result: Result, code: int, *words: str) -> None:
    """The program ended with this code and one sentence on standard error."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    (sentence,) = result.stderr.splitlines()
    assert sentence.rstrip().endswith(".")
    for word in words:
        assert word in sentence


def test_the_same_bundle_twice_is_the_same_version(
    cli: Cli, bundle_folder: Path, tmp_path: Path
) -> None:
    first = cli("models", "add", bundle_folder)
    assert first.exit_code == 0
    assert first.stdout.startswith("demo-land-cover@1 ")
    assert cli("models", "add", bundle_folder).stdout == first.stdout

    other = tmp_path / "other"
    shutil.copytree(bundle_folder, other)
    manifest = yaml.safe_load((other / "bundle.yaml").read_text())
    (other / "bundle.yaml").write_text(yaml.safe_dump(manifest | {"title": "Another"}))
    assert cli("models", "add", other).stdout.startswith("demo-land-cover@2 ")
    listed = json.loads(cli("models", "list", "--json").stdout)
    assert {(item["name"], item["version"]) for item in listed} == {
        ("demo-land-cover", 1),
        ("demo-land-cover", 2),
    }
    assert all(len(item["digest"]) == 64 for item in listed)
    assert "demo-land-cover@2" in cli("models", "list").stdout


def test_no_models_are_an_empty_list(cli: Cli) -> None:
    assert json.loads(cli("models", "list", "--json").stdout) == []


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, ["has no bundle.yaml", "point at the folder"]),
        ({"bundle.yaml": "name: [\n- a"}, ["not readable YAML", "mend the file"]),
        ({"bundle.yaml": "name: x"}, ["runtime", "mend the manifest"]),
        ({"bundle.yaml": "- a"}, ["mend the manifest"]),
        ({"bundle.yaml": "\x00"}, ["not readable YAML"]),
    ],
)
def test_a_wrong_bundle_is_refused(
    cli: Cli, tmp_path: Path, files: dict[str, str], words: list[str]
) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    refused(cli("models", "add", folder), 2, *words)
    assert json.loads(cli("models", "list", "--json").stdout) == []


def test_a_bundle_without_its_weights_is_refused(
    cli: Cli, bundle_folder: Path, tmp_path: Path
) -> None:
    shutil.copy(bundle_folder / "bundle.yaml", tmp_path)
    refused(cli("models", "add", tmp_path), 2, "lacks model.pt", "put the file into the bundle")


def test_a_folder_that_is_not_there_is_refused(cli: Cli, tmp_path: Path) -> None:
    refused(cli("models", "add", tmp_path / "no [/such] place"), 2, "no [/such] place")
    refused(cli("models", "add", Path(__file__)), 2, "bundle.yaml")


def test_submitting_a_file_or_standard_input(
    cli: Cli, installation: Installation, model: ModelRecord, tmp_path: Path
) -> None:
    path = tmp_path / "request.json"
    path.write_text(json.dumps(document(name="from a file")))
    one = cli("submit", path)
    assert one.exit_code == 0
    two = cli("submit", "-", stdin=json.dumps(document(name="from stdin")))
    ids = [str(UUID(result.stdout.strip())) for result in (one, two)]
    records = [installation.catalog.request(identifier) for identifier in ids]
    assert [record.spec["name"] for record in records] == ["from a file", "from stdin"]
    assert {str(record.status) for record in records} == {"PENDING"}


def test_the_same_id_is_the_same_request_and_no_other(
    cli: Cli, installation: Installation, model: ModelRecord
) -> None:
    mine = document(id=str(uuid4()))
    first = cli("submit", "-", stdin=json.dumps(mine))
    again = cli("submit", "-", stdin=json.dumps(mine))
    assert first.stdout == again.stdout
    refused(cli("submit", "-", stdin=json.dumps(mine | {"name": "x"})), 1, mine["id"])
    assert len(installation.catalog.requests()) == 1


BAD: dict[str, tuple[str, list[str]]] = {
    "unknown model": (
        json.dumps(document(model="demo-land-cove")),
        ["model:", "there is no model 'demo-land-cove'", "use one of demo-land-cover"],
    ),
    "markup in a model's name": (
        json.dumps(document(model="[/red]")),
        ["model:", "there is no model '[/red]'"],
    ),
    "empty domain": (
        json.dumps(document(spatial_domain={})),
        ["spatial_domain:", "is empty", "give at least one entry"],
    ),
    "no domain": (json.dumps({"model": "demo-land-cover"}), ["spatial_domain:", "add it"]),
    "malformed date": (
        json.dumps(document(temporal_domain=["30.06.2024"])),
        ["temporal_domain:", "'30.06.2024' is not a date like 2024-06-30", "correct"],
    ),
    "no day of the calendar": (
        json.dumps(document(temporal_domain=["2024-02-30"])),
        ["temporal_domain:", "is not a date like 2024-06-30"],
    ),
    "a period that ends before it begins": (
        json.dumps(document(temporal_domain=["2024-06-30_2024-06-01"])),
        ["temporal_domain:", "ends before it begins"],
    ),
    "south above north": (
        json.dumps(document(spatial_domain={"bbox": [[10, 50, 11, 49]]})),
        ["spatial_domain.bbox:", "south 50.0 is not below north 49.0", "correct"],
    ),
    "off the globe": (
        json.dumps(document(spatial_domain={"bbox": [[10, 50, 11, 95]]})),
        ["spatial_domain.bbox:", "[10.0, 50.0, 11.0, 95.0] is off the globe", "correct"],
    ),
    "not finite": (
        '{"model": "demo-land-cover", "spatial_domain": {"bbox": [[NaN, 0, 1, 1]]}}',
        ["spatial_domain.bbox.0.0:", "finite"],
    ),
    "outside the allowed roots": (
        json.dumps(document(spatial_domain={"urls": ["/etc/passwd"]})),
        ["spatial_domain.urls.0:", "/etc/passwd", "outside"],
    ),
    "out of the allowed roots by dots": (
        json.dumps(document(spatial_domain={"urls": ["DATA/scenes/../../x.tif"]})),
        ["spatial_domain.urls.0:", "outside"],
    ),
    "an address that is no URL": (
        json.dumps(document(spatial_domain={"urls": ["https:///x.tif"]})),
        ["spatial_domain.urls.0:"],
    ),
    "not JSON": ("{'model': 1}", ["request:", "is not JSON", "send one JSON object"]),
    "empty": ("", ["request:", "is not JSON"]),
    "a list": ("[]", ["request:"]),
    "nested without end": ("[" * 100_000, ["request:", "is not JSON"]),
    "unknown field": (
        json.dumps(document(colour="red")),
        ["colour:", "is not a known field", "remove it"],
    ),
    "unknown nested field": (
        json.dumps(document(spatial_domain={"urls": [URL], "url": URL})),
        ["spatial_domain.url:", "is not a known field", "remove it (known: urls, bbox"],
    ),
    "a character that no database holds": (
        json.dumps(document(name="a\0b")),
        ["name:", "NUL"],
    ),
    "half a character": (json.dumps(document(name="\ud800")), ["name:"]),
    "an endless number": (f'{{"priority": {"9" * 5000}}}', ["request:", "is not JSON"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_at_submit_and_nothing_is_written(
    cli: Cli, installation: Installation, model: ModelRecord, case: str
) -> None:
    text, words = BAD[case]
    stdin = text.replace("DATA", str(installation.settings.data_folder))
    refused(cli("submit", "-", stdin=stdin), 2, *words)
    assert installation.catalog.requests() == []


def test_without_any_model_the_remedy_is_to_add_one(cli: Cli, installation: Installation) -> None:
    refused(cli("submit", "-", stdin=json.dumps(document())), 2, "models add")
    assert installation.catalog.requests() == []


def test_a_request_that_cannot_be_read_is_refused(
    cli: Cli, installation: Installation, tmp_path: Path
) -> None:
    refused(cli("submit", tmp_path / "none.json"), 2, "request:", "none.json", "name a file")
    refused(cli("submit", tmp_path), 2, "request:", "cannot be read")
    (tmp_path / "b.json").write_bytes(b"\xff\xfe\x00")
    refused(cli("submit", tmp_path / "b.json"), 2, "request:", "cannot be read")
    assert installation.catalog.requests() == []


def test_status_as_json_and_as_a_table(
    cli: Cli, installation: Installation, model: ModelRecord
) -> None:
    request = submitted(installation, model, tasks=2)
    told = json.loads(cli("status", request, "--json").stdout)
    assert told["id"] == request
    assert told["status"] == "SUBMITTED"
    assert told["error"] is None
    assert told["model"] == "demo-land-cover@1"
    assert counted(told["tasks"]) == {"READY": 2}
    assert counted(told["steps"]["url-connector"]) == {"READY": 2}
    assert counted(told["shards"]) == {"READY": 2}
    table = cli("status", request)
    assert table.exit_code == 0
    assert "SUBMITTED" in table.stdout
    lines = [" ".join(line.split()) for line in table.stdout.splitlines()]
    assert lines[2:] == [
        "model demo-land-cover@1",
        "tasks 2 READY",
        "url-connector 2 READY",
        "push-to-geoserver 2 WAITING",
        "shards 2 READY",
        "predicted 0.00 of 0.00 Mpx",
    ]


def test_tasks_as_json_in_pages(cli: Cli, installation: Installation, model: ModelRecord) -> None:
    request = submitted(installation, model, tasks=3)
    told = json.loads(cli("tasks", request, "--json", "--limit", "2", "--skip", "1").stdout)
    assert [task["id"] for task in told] == [f"{request}-task_1", f"{request}-task_2"]
    assert told[0]["url"] == f"{URL}?1"
    assert [step["process_id"] for step in told[0]["steps"]] == [
        "url-connector",
        "push-to-geoserver",
    ]
    assert "task_2" in cli("tasks", request).stdout


def test_what_is_to_be_copied_is_not_cut_in_a_narrow_terminal(
    cli: Cli, installation: Installation, model: ModelRecord
) -> None:
    request = submitted(installation, model, tasks=1)
    installation.catalog.fail_request(request, "A long reason. " * 10)
    key, _ = installation.catalog.create_key("a.rather.long.name@example.org", days=1)
    assert f"{request} " in cli("status").stdout
    assert f"{request}-task_0 " in cli("tasks", request).stdout
    assert f"{key.id} " in cli("keys", "list").stdout


def test_texts_of_users_are_no_markup(
    cli: Cli, installation: Installation, model: ModelRecord
) -> None:
    request = submitted(installation, model)
    installation.catalog.fail_request(request, "No [/dev] here: [red]stop[/red].")
    assert "No [/dev] here: [red]stop[/red]." in cli("status", request).stdout


def test_cancel_and_retry(cli: Cli, installation: Installation, model: ModelRecord) -> None:
    request = submitted(installation, model, tasks=2)
    refused(cli("retry", request), 1, request)
    assert cli("cancel", request).stdout == f"{request}: STOPPED\n"
    told = json.loads(cli("status", request, "--json").stdout)
    assert counted(told["tasks"]) == {"STOPPED": 2}
    refused(cli("cancel", request), 1, request)
    assert cli("retry", request).stdout == f"{request}: 2 tasks will run again\n"
    assert installation.catalog.request(request).status == "RUNNING"


def test_status_without_an_id_lists_the_latest_requests(
    cli: Cli, installation: Installation, model: ModelRecord
) -> None:
    nothing = cli("status")
    assert nothing.exit_code == 0
    assert nothing.stdout == "There is no request yet; submit one with: geostudio-dagster submit\n"
    first, second = (submitted(installation, model, tasks=1) for _ in range(2))
    listed = json.loads(cli("status", "--json").stdout)
    assert [item["id"] for item in listed] == [second, first]
    assert listed[0]["status"] == "SUBMITTED"
    assert listed[0]["model"] == "demo-land-cover@1"
    assert listed[0]["tasks"] == 1
    table = cli("status").stdout
    assert table.index(second) < table.index(first)


@pytest.mark.parametrize("verb", ["status", "tasks", "cancel", "retry"])
@pytest.mark.parametrize("identifier", [NOBODY, "[/nothing]"])
def test_an_unknown_request_is_one_sentence(cli: Cli, verb: str, identifier: str) -> None:
    refused(cli(verb, identifier), 1, identifier)


@pytest.mark.parametrize(
    ("variable", "value", "code", "words"),
    [
        ("GEOSTUDIO_SHARDS__LEASE_S", "soon", 2, ["GEOSTUDIO_SHARDS__LEASE_S: ", "valid number"]),
        ("GEOSTUDIO_GEOSERVER__USER", "ann", 2, ["GEOSTUDIO_GEOSERVER__URL: ", "required"]),
        ("GEOSTUDIO_ALLOWED_ROOTS", "/data", 2, ["GEOSTUDIO_ALLOWED_ROOTS: ", "as JSON"]),
        ("GEOSTUDIO_DATABASE_URL", "catalog.db", 2, ["GEOSTUDIO_DATABASE_URL: ", "SQLAlchemy URL"]),
        (
            "GEOSTUDIO_DATABASE_URL",
            "postgresql+psycopg2://ann:swordfish@127.0.0.1:9/geo",
            1,
            ["ann:***@127.0.0.1:9/geo does not answer", "Connection refused"],
        ),
        ("GEOSTUDIO_DATA_FOLDER", "/dev/null/x", 1, ["/dev/null/x cannot be made"]),
    ],
)
def test_a_wrong_setting_is_one_sentence(
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    *,
    code: int,
    words: list[str],
) -> None:
    monkeypatch.setenv(variable, value)
    result = cli("models", "list")
    refused(result, code, *words)
    assert "swordfish" not in result.stderr


def test_as_a_program_of_its_own(
    settings: Settings, installation: Installation, model: ModelRecord
) -> None:
    """Piped, as in a script: the id alone on standard output, sentences unwrapped."""

    def run(text: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "geostudio_dagster", "submit", "-"]
        return subprocess.run(command, input=text, capture_output=True, text=True, check=False)

    good = run(json.dumps(document()))
    assert (good.returncode, good.stderr) == (0, "")
    assert [request.id for request in installation.catalog.requests()] == [good.stdout.strip()]
    bad = run(json.dumps(document(spatial_domain={"urls": ["/" + "x" * 150 + ".tif"]})))
    assert (bad.returncode, bad.stdout) == (2, "")
    assert len(bad.stderr.splitlines()) == 1
    assert len(installation.catalog.requests()) == 1
