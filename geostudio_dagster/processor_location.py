"""The second code location: users' processors, apart from the platform's own definitions."""

from __future__ import annotations

import dagster as dg

from geostudio_dagster.importing import importing

with importing("geostudio_dagster.defs"):
    from geostudio_dagster.defs.processor_component import RegisteredProcessors


@dg.definitions
def defs() -> dg.Definitions:
    """Every processor that is offered, as an asset that can be launched alone."""
    return dg.build_defs_for_component(RegisteredProcessors())
