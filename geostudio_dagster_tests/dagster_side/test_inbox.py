"""The inbox folder when files are odd, when the catalog stumbles, and when the process dies."""

from __future__ import annotations

import json
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
