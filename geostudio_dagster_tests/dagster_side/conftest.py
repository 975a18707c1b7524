"""The clock of the main-job tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from dagster import DagsterInstance

from geostudio_dagster.installation import Installation
from geostudio_dagster_tests.driving import Driver


@pytest.fixture
def driver(installation: Installation) -> Iterator[Driver]:
    """Real sensors and runs over ``installation``; Dagster's events stay in memory."""
    with DagsterInstance.ephemeral() as instance:
        yield Driver(installation, instance)
