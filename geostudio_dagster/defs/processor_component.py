"""Registered processors as definitions: the catalog is the state that they are built from."""

# No `from __future__ import annotations`: Dagster reads these signatures as they are.

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from dagster.components import DefsStateConfig, DefsStateConfigArgs

from geostudio_dagster.catalog import ProcessorRecord
from geostudio_dagster.defs.processor_assets import processor_asset
from geostudio_dagster.defs.resources import InstallationResource
from geostudio_dagster.installation import Installation

log = logging.getLogger(__name__)

DIGEST = "geostudio/processors_digest"


class RegisteredProcessors(dg.StateBackedComponent):
    """One asset for every processor that is offered, from rows of the catalog.

    The rows are read when the code server starts (and so at every reload) and travel with each
    run from then on: a run keeps the definition that it was launched with.
    """

    @property
    def defs_state_config(self) -> DefsStateConfig:
        """Where Dagster keeps the rows: in the code server and in its runs, in no file."""
        return DefsStateConfig.from_args(
            DefsStateConfigArgs.legacy_code_server_snapshots(), default_key="RegisteredProcessors"
        )

    def write_state_to_path(self, state_path: Path) -> None:
        """Read the catalog; a catalog out of reach gives a location without processors."""
        try:
            with Installation.open() as installation:
                state = _state(installation)
        except Exception:
            log.exception("the processors cannot be read")
            state = {"digest": "", "processors": []}
        state_path.write_text(json.dumps(state))

    def build_defs_from_state(
        self, context: dg.ComponentLoadContext, state_path: Path | None
    ) -> dg.Definitions:
        """An asset per row; a row that gives none is left out and told of."""
        state = json.loads(state_path.read_text()) if state_path else {"processors": []}
        return dg.Definitions(
            assets=list(_assets(state["processors"])),
            resources={"installation": InstallationResource()},
            executor=dg.in_process_executor,
            metadata={DIGEST: state.get("digest", "")},
        )


def _state(installation: Installation) -> dict[str, Any]:
    # The digest first: what changes in between is seen as a difference, and read again.
    digest = installation.catalog.processors_digest()
    records = installation.catalog.active_processors()
    return {"digest": digest, "processors": [_row(record) for record in records]}


def _row(record: ProcessorRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "owner": record.owner,
        "name": record.name,
        "version": record.version,
        "sha256": record.sha256,
        "description": record.description,
        "parameters": record.parameters,
        "parameters_schema": record.parameters_schema,
        "contract": record.contract,
        "position": str(record.position),
        "limits": record.limits,
        "gpu": record.gpu,
        "created_at": record.created_at.isoformat(),
    }


def _assets(rows: list[Mapping[str, Any]]) -> Iterator[dg.AssetsDefinition]:
    known: set[dg.AssetKey] = set()
    for row in rows:
        try:
            asset = processor_asset(row)
            if asset.key not in known:
                known.add(asset.key)
                yield asset
        except Exception:
            # One row is one user's; the others keep their definitions.
            log.exception("processor %s cannot be shown", row.get("id"))
