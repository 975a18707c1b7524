"""Every operation of GEOStudio's own description is served, or stands in the guide's table.

``upstream_operations.json`` was drawn from the OpenAPI document of GEOStudio's gateway: of each
method and path its query parameters, the media type and fields that it is sent, the status that
it answers, and the fields in the answer (``results.id`` is ``id`` of each of ``results``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from geostudio_dagster_tests.gateway.v2.serving import Api

HERE = Path(__file__).parent
UPSTREAM: dict[str, dict[str, Any]] = json.loads(
    (HERE / "upstream_operations.json").read_text("utf-8")
)
GUIDE = Path(__file__).parents[3] / "deploy" / "docs" / "api-compatibility.md"
SECTION = "## Operations that are not done here"
# What the table may say of an operation; an envelope without results has no fields in them.
STATUSES = ("501", "404", "200, an empty list")
_DEEPEST = 6


def not_done() -> dict[str, str]:
    """Operations of the guide's table, with what each is answered."""
    section = GUIDE.read_text("utf-8").partition(SECTION)[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| `([A-Z]+ /[^`]*)` \| ([^|]+?) \| [^|]+ \|$", section, re.M))


def plain(path: str) -> str:
    """A path whatever its parameters are called, and without a slash behind."""
    return re.sub(r"{[^}]*}", "{}", path.rstrip("/"))


def fields(document: dict[str, Any], schema: dict[str, Any], depth: int = 0) -> Iterator[str]:
    """Names of the fields of a schema, those within others with a dot between."""
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if depth == _DEEPEST:
        return
    for name, inner in schema.get("properties", {}).items():
        yield name
        yield from (f"{name}.{field}" for field in fields(document, inner, depth + 1))
    for choice in ("anyOf", "allOf", "oneOf"):
        for inner in schema.get(choice, []):
            yield from fields(document, inner, depth)
    if "items" in schema:
        yield from fields(document, schema["items"], depth + 1)


def missing(document: dict[str, Any], name: str) -> list[str]:
    """What of an operation our description lacks."""
    method, _, path = name.partition(" ")
    known = {plain(own): methods for own, methods in document["paths"].items()}
    ours = known.get(plain(path), {}).get(method.lower())
    if ours is None:
        return ["the operation"]
    asked = UPSTREAM[name]
    query = {item["name"] for item in ours.get("parameters", []) if item["in"] == "query"}
    lacking = [f"parameter {item}" for item in asked.get("query", []) if item not in query]
    if "sends" in asked:
        content = ours.get("requestBody", {}).get("content", {})
        taken = set(fields(document, content.get(asked["sends"], {}).get("schema", {})))
        lacking += [f"field {item}" for item in asked["fields"] if item not in taken]
    answer = ours["responses"].get(str(asked["answer"]))
    if answer is None:
        return [*lacking, f"status {asked['answer']}"]
    schema = answer.get("content", {}).get("application/json", {}).get("schema", {})
    given = set(fields(document, schema))
    return lacking + [f"answer {item}" for item in asked.get("returns", []) if item not in given]


def test_every_operation_is_served_whole_or_told_in_the_guide(ann: httpx.Client) -> None:
    document = ann.get("/openapi.json").json()
    lacking = {name: found for name in UPSTREAM if (found := missing(document, name))}
    told = not_done()
    assert {name: lacking[name] for name in lacking.keys() - told.keys()} == {}
    assert set(told) - set(UPSTREAM) == set(), "the table names what GEOStudio does not have"
    assert set(told.values()) <= set(STATUSES)
    for name, said in told.items():
        assert said in ("404", "501") or lacking[name], f"{name} is served; it is no exception"


@pytest.mark.parametrize("prefix", ["", "/studio-gateway"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_what_is_not_done_says_so_at_all_addresses(inside: Api, prefix: str, slash: str) -> None:
    client = inside.client()
    for name, said in not_done().items():
        method, _, path = name.partition(" ")
        address = prefix + re.sub(r"{[^}]*}", "x", path.rstrip("/")) + slash
        answer = client.request(method, address)
        assert (str(answer.status_code), answer.history) == (said[:3], []), name
        if said == "200, an empty list":
            assert answer.json() == {"total_records": 0, "page_count": 0, "results": []}
        else:
            assert answer.headers["content-type"] == "application/problem+json"
            assert len(answer.json()["detail"]) > len("Not Found"), name


@pytest.mark.parametrize("prefix", ["", "/studio-gateway"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_no_operation_of_geostudio_is_unknown_at_any_address(
    inside: Api, prefix: str, slash: str
) -> None:
    nobody = inside.client(None)
    for name in UPSTREAM:
        method, _, path = name.partition(" ")
        some = re.sub(r"{[^}]*}", "00000000-0000-0000-0000-000000000000", path.rstrip("/"))
        answer = nobody.request(method, prefix + some + slash)
        assert (answer.status_code, answer.history) == (401, []), name
