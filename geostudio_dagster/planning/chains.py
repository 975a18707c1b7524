"""The chain of processors that a request names: looked up, pinned, parameters checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from geostudio_dagster.catalog.processor_records import PinnedProcessor, ProcessorRecord
from geostudio_dagster.errors import InvalidRequest, NotFound
from geostudio_dagster.planning.request import ProcessorUse
from geostudio_dagster.processors.contract import Contract, check_parameters

if TYPE_CHECKING:
    from geostudio_dagster.catalog import Catalog, Viewer

# Patterns may take exponential time, and references could point anywhere.
_REFUSED = frozenset({"pattern", "patternProperties", "$ref", "$dynamicRef"})


def pin_chain(
    uses: Sequence[ProcessorUse], catalog: Catalog, viewer: Viewer | None
) -> list[PinnedProcessor]:
    """The chain as it is now: versions, and parameters on top of their defaults.

    Raises:
        InvalidRequest: naming the link that is unknown to the viewer or badly parametrised.
    """
    chain = []
    for number, use in enumerate(uses):
        field = f"processors.{number}"
        try:
            processor = catalog.processor(use.processor, viewer)
        except NotFound as error:
            problem, _, remedy = str(error).rstrip(".").partition("; ")
            raise InvalidRequest(f"{field}.processor", problem, remedy) from error
        parameters = complete(processor, use.parameters, f"{field}.parameters")
        position = use.position or processor.position
        chain.append(PinnedProcessor(number, processor, parameters, position))
    return chain


def complete(
    processor: ProcessorRecord, given: Mapping[str, Any], field: str = "parameters"
) -> dict[str, Any]:
    """The parameters of one run: what is given, on top of the processor's defaults.

    Raises:
        InvalidRequest: a value is of another kind than its default, is against the schema, or
            cannot be handed to the script.
    """
    merged = {**processor.parameters, **given}
    _check_contract(processor, merged, field)
    if processor.parameters_schema is not None:
        _check_schema(processor.parameters_schema, merged, field)
        return merged
    for name, value in given.items():
        default = processor.parameters.get(name)
        if default is None or value is None or _kind(value) == _kind(default):
            continue
        raise InvalidRequest(
            f"{field}.{name}",
            f"is {_kind(value)}, but {processor.label} has {_kind(default)} there ({default!r})",
            "give a value of that kind",
        )
    return merged


def check_parameters_schema(schema: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """See that a JSON Schema can be used for parameters, and that it describes an object.

    Raises:
        InvalidRequest: it is no schema, or has keywords that are not allowed here.
    """
    from jsonschema import Draft202012Validator, SchemaError

    field = "parameters_schema"
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise InvalidRequest(field, f"is not a JSON Schema ({error.message})", "mend it") from error
    found = _keywords(schema) & _REFUSED
    if found:
        raise InvalidRequest(field, f"uses {', '.join(sorted(found))}", "say it without")
    known = schema.get("properties", {})
    unknown = sorted(set(defaults) - set(known))
    if unknown and schema.get("additionalProperties") is False:
        raise InvalidRequest(field, f"does not know the parameter {unknown[0]}", "describe it")


def _check_contract(processor: ProcessorRecord, values: Mapping[str, Any], field: str) -> None:
    try:
        check_parameters(cast("Contract", processor.contract), values)
    except InvalidRequest as error:
        raise InvalidRequest(field, error.problem, error.remedy) from error


def _check_schema(schema: Mapping[str, Any], values: Mapping[str, Any], field: str) -> None:
    from jsonschema import Draft202012Validator
    from referencing import Registry

    # An empty registry: nothing is ever fetched.
    validator = Draft202012Validator(schema, registry=Registry())
    error = next(iter(sorted(validator.iter_errors(values), key=lambda e: list(e.path))), None)
    if error is not None:
        place = ".".join(str(part) for part in (field, *error.absolute_path))
        raise InvalidRequest(place, error.message, "correct the value")


def _keywords(node: Any) -> set[str]:
    """The keywords of a schema; names of parameters are none."""
    if isinstance(node, list):
        return set().union(*(_keywords(item) for item in node))
    if not isinstance(node, Mapping):
        return set()
    found = {str(key) for key in node}
    for key, value in node.items():
        inner = (
            list(value.values()) if key == "properties" and isinstance(value, Mapping) else value
        )
        found |= _keywords(inner)
    return found


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text"
    return "a list" if isinstance(value, list) else "an object"
