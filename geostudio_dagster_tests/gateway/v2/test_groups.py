from __future__ import annotations

from uuid import uuid4

import httpx
import pytest

from geostudio_dagster.catalog.api_schema import Tune
from geostudio_dagster.catalog.database import utc_now
from geostudio_dagster_tests.gateway.v2.serving import ANN, BOB, Api

OWNERS_ONLY = "Only group owners can perform this action"
MEMBERS_ONLY = "You must be a member of this group to perform this action"


def sentence(answer: httpx.Response) -> tuple[int, object]:
    return answer.status_code, answer.json()["detail"]


@pytest.fixture
def group(ann: httpx.Client) -> str:
    """A group of Ann's."""
    made = ann.post("/v2/groups", json={"name": "Wetlands", "description": "Danube"})
    assert made.status_code == 201
    return str(made.json()["id"])


def tune_of(api: Api, owner: str, identifier: str = "geotune-abcdefghij0123456789xy") -> str:
    now = utc_now()
    row = Tune(
        id=identifier,
        name="tune",
        description="",
        status="Finished",
        details={},
        owner=owner,
        created_at=now,
        updated_at=now,
    )
    with api.installation.catalog._write() as session:
        session.add(row)
    return identifier


def test_a_group_belongs_to_who_made_it(ann: httpx.Client, bob: httpx.Client, group: str) -> None:
    document = ann.get(f"/v2/groups/{group}").json()
    assert (document["name"], document["created_by"]) == ("Wetlands", ANN)
    (member,) = document["members"]
    assert (member["user_email"], member["role"]) == (ANN, "owner")
    assert ann.get("/v2/groups/").json() == [document]
    assert bob.get("/v2/groups").json() == []
    assert sentence(bob.get(f"/v2/groups/{group}")) == (403, MEMBERS_ONLY)
    assert sentence(bob.delete(f"/v2/groups/{group}")) == (403, OWNERS_ONLY)


def test_a_name_is_taken_once(bob: httpx.Client, group: str) -> None:
    again = bob.post("/v2/groups", json={"name": "Wetlands"})
    assert sentence(again) == (400, "Group with name 'Wetlands' already exists")


def test_members_come_and_go(ann: httpx.Client, bob: httpx.Client, group: str) -> None:
    members = f"/v2/groups/{group}/members"
    added = ann.post(members, json={"user_email": "Bob@Example.org"})
    assert added.status_code == 201
    assert [(m["user_email"], m["role"]) for m in added.json()["members"]] == [
        (ANN, "owner"),
        (BOB, "member"),
    ]
    assert ann.post(members, json={"user_email": BOB}).status_code == 400
    assert [item["id"] for item in bob.get("/v2/groups").json()] == [group]
    assert sentence(bob.post(members, json={"user_email": "c@example.org"})) == (403, OWNERS_ONLY)
    assert sentence(bob.delete(f"{members}/{ANN}")) == (403, OWNERS_ONLY)
    gone = bob.delete(f"{members}/{BOB}")
    assert (gone.status_code, gone.content) == (204, b"")
    assert bob.get("/v2/groups").json() == []
    assert sentence(ann.delete(f"{members}/{BOB}"))[0] == 404


def test_a_group_keeps_an_owner(ann: httpx.Client, bob: httpx.Client, group: str) -> None:
    members = f"/v2/groups/{group}/members"
    demoted = ann.put(f"{members}/{ANN}/role", json={"role": "member"})
    assert sentence(demoted) == (400, "Cannot demote the last owner of the group")
    assert ann.delete(f"{members}/{ANN}").status_code == 400
    ann.post(members, json={"user_email": BOB})
    promoted = ann.put(f"{members}/{BOB}/role", json={"role": "owner"})
    assert promoted.status_code == 200
    assert ann.delete(f"{members}/{ANN}").status_code == 204
    assert bob.delete(f"/v2/groups/{group}").status_code == 204
    assert sentence(bob.get(f"/v2/groups/{group}")) == (404, "Group not found")


def test_things_with_text_ids_are_shared_and_taken_back(
    inside: Api, ann: httpx.Client, group: str
) -> None:
    artifacts = f"/v2/groups/{group}/artifacts"
    tune = tune_of(inside, ANN)
    grant = {"artifact_type": "tune", "artifact_id": tune}
    given = ann.post(artifacts, json=grant)
    assert given.status_code == 201
    assert given.json()["artifact_id"] == tune
    assert given.json()["granted_by"] == ANN
    assert ann.post(artifacts, json=grant).status_code == 400
    assert [item["artifact_id"] for item in ann.get(f"{artifacts}/").json()] == [tune]
    assert ann.delete(f"{artifacts}/tune/{tune}").status_code == 204
    assert ann.delete(f"{artifacts}/tune/{tune}").status_code == 404
    assert ann.get(artifacts).json() == []


def test_only_own_things_are_shared(inside: Api, ann: httpx.Client, group: str) -> None:
    refused = "You can only share artifacts that you own"
    for kind, artifact in (
        ("tune", tune_of(inside, BOB)),
        ("model", str(uuid4())),
        ("inference_run", str(uuid4())),
        ("dataset", "geodata-x"),
    ):
        grant = {"artifact_type": kind, "artifact_id": artifact}
        answer = ann.post(f"/v2/groups/{group}/artifacts", json=grant)
        assert sentence(answer) == (403, refused), kind


def test_deleting_a_group_ends_what_it_shared(
    inside: Api, ann: httpx.Client, bob: httpx.Client, group: str
) -> None:
    ann.post(f"/v2/groups/{group}/members", json={"user_email": BOB})
    grant = {"artifact_type": "tune", "artifact_id": tune_of(inside, ANN)}
    assert ann.post(f"/v2/groups/{group}/artifacts", json=grant).status_code == 201
    shared = inside.installation.catalog.viewer_of_key(inside.key(BOB))
    assert shared is not None
    assert shared.groups == {group}
    ann.delete(f"/v2/groups/{group}")
    after = inside.installation.catalog.viewer_of_key(inside.key(BOB))
    assert after is not None
    assert after.groups == frozenset()


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"name": "a", "description": 7}, "description"),
        ({"name": "a\0b"}, "name"),
    ],
)
def test_a_wrong_group_is_refused_by_its_field(
    ann: httpx.Client, body: dict[str, object], field: str
) -> None:
    refused = ann.post("/v2/groups", json=body)
    assert refused.status_code == 422
    assert refused.json()["detail"][0]["loc"] == ["body", field]
    assert ann.get("/v2/groups").json() == []
