from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import timedelta

import pytest

from geostudio_dagster.catalog import (
    Catalog,
    PinnedProcessor,
    Position,
    ProcessorDraft,
    ProcessorRecord,
    Viewer,
)
from geostudio_dagster.catalog.api_schema import Group, Permission
from geostudio_dagster.catalog.database import utc_now
from geostudio_dagster.catalog.pages import Paging
from geostudio_dagster.errors import NotFound
from geostudio_dagster_tests.catalog.driving import Driver

ADA, BOB = Viewer("ada@example.org"), Viewer("bob@example.org")


def draft(name: str = "cloud-mask", text: str = "print(1)", **more: object) -> ProcessorDraft:
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    base = ProcessorDraft(name, f"{name}.py", sha256, len(text), f"_processors/{sha256}.py")
    return replace(base, **more)  # type: ignore[arg-type]


def share(catalog: Catalog, processor: ProcessorRecord, group: str) -> None:
    with catalog._write() as session:
        now = utc_now()
        session.add(Group(id=group, name=group, created_by="ada@example.org", created_at=now))
        session.flush()
        session.add(
            Permission(
                group_id=group,
                kind="generic_processor",
                artifact_id=processor.id,
                granted_by="ada@example.org",
                granted_at=now,
            )
        )


def pin(processor: ProcessorRecord, number: int = 0) -> PinnedProcessor:
    return PinnedProcessor(number, processor, {"threshold": 80}, Position.AFTER_POSTPROCESS)


def request_with(catalog: Catalog, drive: Driver, *chain: ProcessorRecord) -> str:
    model = drive.model()
    pins = [pin(processor, number) for number, processor in enumerate(chain)]
    return catalog.create_request(
        request_id=None, spec={}, model_id=model.id, owner="ada@example.org", processors=pins
    ).id


def test_other_content_is_the_next_version_and_the_same_again_is_not(catalog: Catalog) -> None:
    first = catalog.register_processor(draft(), owner=ADA.email)
    again = catalog.register_processor(draft(description="Better said."), owner=ADA.email)
    assert (again.id, again.version, again.status) == (first.id, 1, "FINISHED")
    assert again.description == "Better said."
    second = catalog.register_processor(draft(text="print(2)"), owner=ADA.email)
    assert (second.version, second.id != first.id) == (2, True)
    third = catalog.register_processor(draft(parameters={"a": 1}), owner=ADA.email)
    assert third.version == 3, "other defaults make another processor of the same script"
    elsewhere = catalog.register_processor(draft(), owner=BOB.email)
    assert elsewhere.version == 1

    assert [r.version for r in catalog.processor_versions(first.id, ADA)] == [3, 2, 1]
    total, records = catalog.processors(ADA)
    assert (total, [r.version for r in records]) == (1, [3])
    assert catalog.processors(ADA, all_versions=True)[0] == 3
    assert catalog.processors(ADA, Paging(q="CLOUD"))[0] == 1
    assert catalog.processors(ADA, Paging(q="%"))[0] == 0


def test_a_reference_is_an_id_a_name_or_a_version_of_it(catalog: Catalog) -> None:
    first = catalog.register_processor(draft(), owner=ADA.email)
    second = catalog.register_processor(draft(text="print(2)"), owner=ADA.email)
    catalog.register_processor(draft(text="print(3)"), owner=BOB.email)
    assert catalog.processor(first.id, ADA) == first
    assert catalog.processor("cloud-mask", ADA) == second
    assert catalog.processor("cloud-mask@1", ADA) == first
    with pytest.raises(NotFound, match=r"no processor cloud-mask@9; there are cloud-mask"):
        catalog.processor("cloud-mask@9", ADA)
    with pytest.raises(NotFound, match="none is registered yet"):
        catalog.processor(first.id, Viewer("eve@example.org"))
    assert catalog.processor(first.id, Viewer("root@example.org", admin=True)) == first


def test_groups_see_what_is_shared_and_its_later_versions(catalog: Catalog) -> None:
    first = catalog.register_processor(draft(), owner=ADA.email)
    share(catalog, first, "floods")
    bob = Viewer(BOB.email, groups=frozenset({"floods"}))
    assert catalog.processor("cloud-mask", bob) == first
    second = catalog.register_processor(draft(text="print(2)"), owner=ADA.email)
    assert catalog.processor("cloud-mask", bob) == second
    assert catalog.processors(BOB) == (0, [])
    with pytest.raises(NotFound):
        catalog.delete_processor(first.id, bob)
    installed = catalog.register_processor(draft("ndvi", sharable=True), owner="cli")
    assert catalog.processor("ndvi", BOB) == installed
    for text in ("print(1)", "print(2)"):
        mine = catalog.register_processor(draft("ndvi", text), owner=BOB.email)
    assert catalog.processor("ndvi", BOB) == mine
    assert catalog.processor("ndvi", ADA) == installed
    assert catalog.processor("ndvi") == installed, "to the operator, too"


def test_a_deprecated_version_is_found_by_version_only(catalog: Catalog) -> None:
    first = catalog.register_processor(draft(), owner=ADA.email)
    second = catalog.register_processor(draft(text="print(2)"), owner=ADA.email)
    before = catalog.processors_digest()
    assert catalog.deprecate_processor(second.id, ADA).deprecated_at is not None
    assert catalog.processors_digest() != before
    assert catalog.processor("cloud-mask", ADA).version == 1
    assert catalog.processor("cloud-mask@2", ADA).version == 2
    assert [r.id for r in catalog.active_processors()] == [first.id]
    revived = catalog.register_processor(draft(text="print(2)"), owner=ADA.email)
    assert (revived.id, revived.deprecated_at) == (second.id, None)
    assert [r.id for r in catalog.active_processors()] == [second.id]


def test_a_deleted_processor_serves_the_requests_that_pinned_it(
    catalog: Catalog, drive: Driver
) -> None:
    first = catalog.register_processor(draft(), owner=ADA.email)
    request = request_with(catalog, drive, first, first)
    catalog.delete_processor(first.id, ADA)
    with pytest.raises(NotFound):
        catalog.processor(first.id, ADA)
    with pytest.raises(NotFound):
        catalog.delete_processor(first.id, ADA)
    chain = catalog.request_processors(request)
    assert [(p.number, p.processor.sha256, p.parameters) for p in chain] == [
        (0, first.sha256, {"threshold": 80}),
        (1, first.sha256, {"threshold": 80}),
    ]
    assert catalog.requests_of_processor(first.id) == [request]
    assert catalog.unneeded_scripts() == []
    catalog.cancel(request)
    assert catalog.unneeded_scripts() == [first.key]
    assert catalog.register_processor(draft(), owner=BOB.email).version == 1
    assert catalog.unneeded_scripts() == [], "somebody else has the same script"
    assert catalog.register_processor(draft(), owner=ADA.email).version == 2


def test_what_was_deleted_meanwhile_cannot_be_pinned(catalog: Catalog, drive: Driver) -> None:
    first = catalog.register_processor(draft(), owner=ADA.email)
    catalog.delete_processor(first.id)
    with pytest.raises(NotFound, match="cloud-mask@1 was deleted meanwhile"):
        request_with(catalog, drive, first)
    assert catalog.requests() == []


def test_a_deleted_processor_is_forgotten_once_no_request_was_made_with_it(
    catalog: Catalog, drive: Driver
) -> None:
    pinned, free, alive = (
        catalog.register_processor(draft(name), owner=ADA.email)
        for name in ("pinned", "free", "alive")
    )
    request = request_with(catalog, drive, pinned)
    for processor in (pinned, free):
        catalog.delete_processor(processor.id, ADA)
    assert catalog.forget_processors(utc_now() - timedelta(days=7), 10) == []
    assert catalog.forget_processors(utc_now(), 10) == [free.id]
    assert [item.processor.id for item in catalog.request_processors(request)] == [pinned.id]
    assert catalog.processor(alive.id, ADA).id == alive.id
    catalog.delete_request(request, ADA)
    catalog.forget_request(request)
    assert catalog.forget_processors(utc_now(), 10) == [pinned.id]
