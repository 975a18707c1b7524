"""The inbox folder when files are odd, when the catalog stumbles, and when the process dies."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from geostudio_dagster import inbox
from geostudio_dagster.catalog import ModelRecord
from geostudio_dagster.installation import Installation
from geostudio_dagster_tests.conftest import MakeScene


@pytest.fixture
def good(installation: Installation, model: ModelRecord, make_scene: MakeScene) -> str:
    installation.settings.inbox.mkdir(parents=True)
    urls = [str(make_scene("s.tif", size=64))]
    return json.dumps({"model": model.name, "spatial_domain": {"urls": urls}})


def test_one_file_that_cannot_be_taken_now_holds_up_no_other(
    installation: Installation, good: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = installation.settings.inbox
    for name in ("a.json", "b.json"):
        (folder / name).write_text(good)
    original = inbox.admit

    def admit(spec: Any, *args: Any, **options: Any) -> Any:
        if not list((folder / "accepted").glob("b*")) and len(calls) == 0:
            calls.append(spec)
            raise RuntimeError("the catalog stumbles")
        return original(spec, *args, **options)

    calls: list[Any] = []
    monkeypatch.setattr(inbox, "admit", admit)
    assert [outcome.file for outcome in inbox.take_all(installation)] == ["b.json"]
    assert [outcome.file for outcome in inbox.take_all(installation)] == ["a.json"]


@pytest.mark.parametrize("text", ["[" * 100_000, '{"model": "a\\u0000b"}'])
def test_odd_files_are_rejected_at_once(installation: Installation, good: str, text: str) -> None:
    (installation.settings.inbox / "odd.json").write_text(text)
    (outcome,) = inbox.take_all(installation)
    assert not outcome.accepted
    assert (installation.settings.inbox / "rejected" / "odd.reason.txt").read_text()


def test_a_file_whose_move_was_interrupted_is_the_same_request(
    installation: Installation, good: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = installation.settings.inbox
    (folder / "a.json").write_text(good)

    def died(*_: object) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", died)
        with pytest.raises(KeyboardInterrupt):
            inbox.take_all(installation)
    (outcome,) = inbox.take_all(installation)
    assert (folder / "accepted" / "a.id.txt").read_text().strip() == outcome.verdict
    assert len(installation.catalog.requests()) == 1


def test_a_file_that_is_still_being_written_waits(
    installation: Installation, good: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "_SETTLE_S", 3600.0)  # however slowly this test goes on
    folder = installation.settings.inbox
    path = folder / "slow.json"
    path.write_text(good[: len(good) // 2])
    assert inbox.take_all(installation) == []
    assert path.exists()
    path.write_text(good)
    (outcome,) = inbox.take_all(installation)
    assert outcome.accepted
    assert (folder / "accepted" / "slow.json").read_text() == good


@pytest.mark.parametrize("age_s", [60, -3600], ids=["old", "of a clock that is ahead"])
def test_a_truncated_file_that_nobody_writes_any_more_is_rejected(
    installation: Installation, good: str, age_s: float
) -> None:
    path = installation.settings.inbox / "half.json"
    path.write_text(good[: len(good) // 2])
    written = time.time() - age_s
    os.utime(path, (written, written))
    (outcome,) = inbox.take_all(installation)
    assert not outcome.accepted
    assert "is not JSON" in outcome.verdict
    assert installation.catalog.requests() == []


def test_the_same_file_seen_again_after_its_admission_is_the_same_request(
    installation: Installation, good: str
) -> None:
    """A crash between admission and move leaves the file where it was."""
    folder = installation.settings.inbox
    (folder / "a.json").write_text(good)
    (first,) = inbox.take_all(installation)
    (folder / "accepted" / "a.json").rename(folder / "a.json")
    (again,) = inbox.take_all(installation)
    assert again == first
    assert len(installation.catalog.requests()) == 1


def test_the_same_content_dropped_later_is_another_request(
    installation: Installation, good: str
) -> None:
    folder = installation.settings.inbox
    for age_s in (60, 30):
        (folder / "a.json").write_text(good)
        os.utime(folder / "a.json", (time.time() - age_s, time.time() - age_s))
        assert [outcome.accepted for outcome in inbox.take_all(installation)] == [True]
    assert len(installation.catalog.requests()) == 2
    kept = sorted(path.name for path in (folder / "accepted").iterdir())
    assert kept == ["a-1.id.txt", "a-1.json", "a.id.txt", "a.json"]


def test_links_are_rejected_and_what_they_lead_to_is_left_alone(
    installation: Installation, good: str, tmp_path: Path
) -> None:
    folder = installation.settings.inbox
    elsewhere = tmp_path / "elsewhere.json"
    elsewhere.write_text(good)
    (folder / "link.json").symlink_to(elsewhere)
    (folder / "broken.json").symlink_to(tmp_path / "nothing.json")
    outcomes = {outcome.file: outcome for outcome in inbox.take_all(installation)}
    assert set(outcomes) == {"link.json", "broken.json"}
    assert {outcome.accepted for outcome in outcomes.values()} == {False}
    reason = (folder / "rejected" / "link.reason.txt").read_text()
    assert reason == "request: is a link; put the file itself here.\n"
    assert elsewhere.read_text() == good
    assert installation.catalog.requests() == []
    assert inbox.take_all(installation) == []


def test_too_large_files_are_rejected_unread(installation: Installation, good: str) -> None:
    small = installation.settings.model_copy(update={"max_request_bytes": len(good) - 1})
    folder = installation.settings.inbox
    (folder / "large.json").write_text(good)
    limited = Installation(small, installation.catalog, installation.storage)
    (outcome,) = inbox.take_all(limited)
    assert outcome.verdict == (
        f"request: is {len(good)} bytes long; stay under {len(good) - 1} bytes."
    )
    assert installation.catalog.requests() == []


def test_folders_and_pipes_are_no_requests(installation: Installation, good: str) -> None:
    folder = installation.settings.inbox
    (folder / "folder.json").mkdir()
    os.mkfifo(folder / "pipe.json")
    assert inbox.take_all(installation) == []
