"""One asset per registered processor: what it is, how it is configured, and a run of it alone."""

# No `from __future__ import annotations`: Dagster reads these signatures as they are.

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import dagster as dg

from geostudio_dagster.catalog import PinnedProcessor
from geostudio_dagster.defs.resources import InstallationResource
from geostudio_dagster.pipeline.stage import StageReport

GROUP = "processors"
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
_DIGITS = 10
_PRIMITIVES: Mapping[str, Any] = {
    "boolean": dg.Bool,
    "integer": dg.Int,
    "number": dg.Float,
    "string": dg.String,
}


def processor_name(owner: str, name: str) -> str:
    """The op's name: readable, and never that of another owner or name."""
    plain = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")[:60] or "processor"
    digest = hashlib.sha256(f"{owner}\0{name}".encode()).hexdigest()[:_DIGITS]
    return f"{plain}_{digest}"


def processor_key(owner: str, name: str) -> dg.AssetKey:
    """The asset of a processor, whatever its version."""
    return dg.AssetKey([GROUP, processor_name(owner, name)])


def processor_asset(row: Mapping[str, Any]) -> dg.AssetsDefinition:
    """The definition of one processor, from its row of the component's state.

    Raises:
        Exception: whatever is wrong with the row.
    """
    processor_id, label = str(row["id"]), f"{row['name']}@{row['version']}"

    @dg.multi_asset(
        name=processor_name(row["owner"], row["name"]),
        specs=[_spec(row)],
        config_schema=config_schema(row),
        description=row["description"] or label,
    )
    def processor(
        context: dg.AssetExecutionContext, installation: InstallationResource
    ) -> dg.MaterializeResult:
        from geostudio_dagster.defs.processor_runs import run_alone

        return run_alone(context, installation.get(), processor_id)

    return processor


def processor_materialization(
    pin: PinnedProcessor, shard: str, report: StageReport
) -> dg.AssetMaterialization:
    """That a processor ran for a shard's tasks, for the processor's own page."""
    request_id, _, _ = shard.partition("/")
    return dg.AssetMaterialization(
        processor_key(pin.processor.owner, pin.processor.name),
        metadata={
            "version": pin.processor.version,
            "sha256": pin.processor.sha256,
            "request": request_id,
            "shard": shard,
            "tasks": len(report.outcomes),
            "finished": report.count("finished"),
            "failed": report.count("failed"),
            "parameters": dg.MetadataValue.json(pin.parameters),
        },
    )


def _spec(row: Mapping[str, Any]) -> dg.AssetSpec:
    owner = str(row["owner"])
    team = re.sub(r"[^A-Za-z0-9_-]+", "-", owner)
    return dg.AssetSpec(
        processor_key(owner, row["name"]),
        group_name=GROUP,
        description=f"{row['description']}\n\nThe script {row['name']} of {owner}.".strip(),
        owners=[owner if _EMAIL.fullmatch(owner) else f"team:{team}"],
        kinds={"python"},
        code_version=f"{row['version']}-{row['sha256'][:12]}",
        metadata={
            "processor": row["name"],
            "version": row["version"],
            "sha256": row["sha256"],
            "processor_id": row["id"],
            "owner": owner,
            "contract": row["contract"],
            "position": row["position"],
            "gpu": row["gpu"],
            "limits": dg.MetadataValue.json(row["limits"]),
            "registered_at": row["created_at"],
        },
    )


def config_schema(row: Mapping[str, Any]) -> dict[str, dg.Field]:
    """The launchpad's form: which task, and the processor's parameters with their defaults."""
    return {
        "task": dg.Field(
            dg.String, description="Id of a task that has a prediction, such as <request>-task_0."
        ),
        "parameters": dg.Field(
            dg.Permissive(_parameter_fields(row)),  # type: ignore[no-untyped-call]
            is_required=False,
            description="What the script is given.",
        ),
    }


def _parameter_fields(row: Mapping[str, Any]) -> dict[str, dg.Field]:
    defaults = dict(row["parameters"])
    schema = row["parameters_schema"] or {}
    properties = {name: dict(value) for name, value in schema.get("properties", {}).items()}
    required = set(schema.get("required", ())) - set(defaults)
    return {
        name: _field(properties.get(name, {}), defaults, name, is_required=name in required)
        for name in sorted({*defaults, *properties})
    }


def _field(
    schema: Mapping[str, Any], defaults: Mapping[str, Any], name: str, *, is_required: bool
) -> dg.Field:
    kind = _PRIMITIVES.get(str(schema.get("type"))) or _kind_of(defaults.get(name))
    if kind is not dg.Any and defaults.get(name, 0) is None:
        kind = dg.Noneable(kind)
    given = {"default_value": defaults[name]} if name in defaults else {}
    description = str(schema.get("description") or "") or None
    if given:
        return dg.Field(kind, is_required=False, description=description, **given)
    return dg.Field(kind, is_required=is_required, description=description)


def _kind_of(value: object) -> Any:
    """The config type of a default; lists, objects and null take anything."""
    kinds = {bool: dg.Bool, int: dg.Float, float: dg.Float, str: dg.String}
    return kinds.get(type(value), dg.Any)
