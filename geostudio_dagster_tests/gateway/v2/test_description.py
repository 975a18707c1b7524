"""The API does what its own description says, whatever is sent: schemathesis looks for the rest.

On PostgreSQL, which refuses more than SQLite does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from geostudio_dagster.installation import Installation
from geostudio_dagster.models.registration import register_bundle
from geostudio_dagster.planning.admission import admit
from geostudio_dagster.settings import Settings
from geostudio_dagster_tests.catalog.conftest import new_database
from geostudio_dagster_tests.gateway.v2.serving import PATIENCE_S, listening

EMAIL = "schema@example.org"
EXAMPLES = 12  # of each operation; more, for an hour of searching, are of no use in CI
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


class World:
    """A gateway with something in it, and the ids of what is there."""

    def __init__(self, url: str, key: str, known: dict[str, str]) -> None:
        self.url, self.key, self.known = url, key, known


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, bundle_folder: Path) -> Iterator[World]:
    with ExitStack() as stack:
        url = stack.enter_context(new_database())
        chosen = Settings(
            data_folder=tmp_path_factory.mktemp("described") / "data", database_url=url
        )
        installation = stack.enter_context(Installation.open(chosen))
        catalog = installation.catalog
        model = register_bundle(installation, bundle_folder, owner="tests")
        _, key = catalog.create_key(EMAIL, days=1)
        document = {"model": model.name, "spatial_domain": {"urls": ["https://example.org/a.tif"]}}
        request = admit(document, catalog, chosen, owner=EMAIL)
        viewer = catalog.viewer_of_key(key)
        assert viewer is not None
        group = catalog.create_group(viewer, f"group {uuid4()}", None)
        tune = catalog.create_tune(
            viewer,
            "tune",
            "",
            config_url="https://example.org/config_deploy.yaml",
            checkpoint_url="https://example.org/best.ckpt",
            details={},
        )
        known = {
            "tune_id": tune.id,
            "model_id": model.id,
            "inference_id": request.id,
            "request_id": request.id,
            "task_id": f"{request.id}-task_planning",
            "group_id": group.id,
            "connector": "sentinel_aws",
            "event_id": request.id,
        }
        yield World(stack.enter_context(listening(chosen)), key, known)


def failure_of(operation: schemathesis.APIOperation, world: World) -> str | None:
    """What schemathesis finds wrong with one operation; None if it is as described."""

    @given(case=operation.as_strategy())
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def call(case: schemathesis.Case) -> None:
        for name in case.path_parameters or {}:
            if name in world.known and len(str(case.body)) % 2:
                case.path_parameters[name] = world.known[name]
        answer = case.call(headers={"X-API-Key": world.key}, timeout=PATIENCE_S)
        # 501 says that something is not done here; that is no mistake.
        checks = [check for check in CHECKS if check is not not_a_server_error]
        case.validate_response(answer, checks=checks if answer.status_code == 501 else CHECKS)

    try:
        call()
    except (Exception, BaseExceptionGroup) as error:
        return f"{operation.method} {operation.path}: {error}"
    return None


def test_nothing_breaks_the_description(world: World) -> None:
    schema = schemathesis.openapi.from_url(f"{world.url}/openapi.json")
    # Streams of events have no end, and uploads no shape.
    chosen = schema.exclude(path_regex="/events")
    operations = [found.ok() for found in chosen.get_all_operations()]
    assert len(operations) > 20
    failures = [failure for item in operations if (failure := failure_of(item, world))]
    assert not failures, "\n\n".join(failures)
