"""The chain of a request: steps, defaults, schemas, what cannot be handed to a script."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from geostudio_dagster.catalog import Position, ProcessorRecord
from geostudio_dagster.errors import InvalidRequest
from geostudio_dagster.planning.chains import check_parameters_schema, complete
from geostudio_dagster.planning.plan import STEPS, steps_with
from geostudio_dagster.planning.request import parse_request

NOW = dt.datetime(2026, 11, 20, tzinfo=dt.UTC)
AFTER, BEFORE = Position.AFTER_POSTPROCESS, Position.BEFORE_POSTPROCESS
SCHEMA = {
    "type": "object",
    "properties": {"method": {"enum": ["scl", "fmask"]}, "drop": {"type": ["integer", "null"]}},
    "additionalProperties": False,
}


def processor(**changes: Any) -> ProcessorRecord:
    facts: dict[str, Any] = {
        "id": "1",
        "owner": "ada@example.org",
        "name": "mask",
        "version": 2,
        "sha256": "0" * 64,
        "size": 1,
        "key": "_processors/0.py",
        "file_name": "mask.py",
        "description": "",
        "parameters": {},
        "parameters_schema": None,
        "contract": "positional",
        "position": AFTER,
        "limits": {},
        "gpu": False,
        "report": {},
        "status": "FINISHED",
        "sharable": False,
        "created_at": NOW,
        "updated_at": NOW,
        "deprecated_at": None,
        "deleted_at": None,
    }
    return ProcessorRecord(**{**facts, **changes})


def test_processors_have_a_step_only_where_there_are_any() -> None:
    assert steps_with(()) == STEPS
    early, late = "generic-python-processor-before-postprocess", "generic-python-processor"
    assert steps_with({AFTER}) == (*STEPS[:3], late, STEPS[3])
    assert steps_with({BEFORE}) == (*STEPS[:2], early, *STEPS[2:])
    assert steps_with({AFTER, BEFORE}) == (*STEPS[:2], early, STEPS[2], late, STEPS[3])


def test_what_is_given_goes_on_top_of_the_defaults() -> None:
    defaults = {"threshold": 80, "nested": {"a": [1, None]}, "note": None, "on": True}
    given = {"threshold": 60.5, "extra": "ö", "on": False, "note": "text"}
    assert complete(processor(parameters=defaults), given) == {**defaults, **given}
    assert complete(processor(parameters=defaults), {"threshold": None})["threshold"] is None


@pytest.mark.parametrize(
    ("changes", "given", "sentence"),
    [
        (
            {"parameters": {"threshold": 80}},
            {"threshold": "80"},
            "parameters.threshold: is text, but mask@2 has a number there (80); give a value",
        ),
        (
            {"parameters": {"on": True}},
            {"on": 1},
            "parameters.on: is a number, but mask@2 has true",
        ),
        ({"parameters_schema": SCHEMA}, {"method": "x"}, "parameters.method: 'x' is not one of"),
        ({"parameters_schema": SCHEMA}, {"colour": 1}, "parameters: Additional properties are"),
        ({"contract": "flags"}, {"a b": 1}, "parameters: 'a b' cannot be the name of a flag"),
        ({"contract": "flags"}, {"input": 1}, "would collide with the flag of the same name"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(
    changes: dict[str, Any], given: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        complete(processor(**changes), given)
    assert sentence in str(refusal.value)


@pytest.mark.parametrize(
    ("schema", "sentence"),
    [
        ({"type": "objekt"}, "is not a JSON Schema"),
        ({"properties": {"a": {"$ref": "http://169.254.169.254/"}}}, "uses $ref"),
        ({"properties": {"a": {"anyOf": [{"pattern": "(a+)+$"}]}}}, "uses pattern"),
        (SCHEMA, "does not know the parameter threshold"),
    ],
)
def test_schemas_that_cannot_be_used_are_refused(schema: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        check_parameters_schema(schema, {"threshold": 1})
    assert sentence in str(refusal.value)


def test_a_parameter_may_be_called_as_a_keyword_is() -> None:
    check_parameters_schema({"properties": {"pattern": {"type": "string"}}}, {"pattern": "x"})


@pytest.mark.parametrize(
    ("layer", "sentence"),
    [
        ({"suffix": "a.tif", "name": "pred"}, "pred is a layer that every request has"),
        ({"suffix": "a.tif", "name": "../x"}, "output_layers.0.name"),
        (
            {
                "suffix": "a.tif",
                "name": "a",
                "style": {"kind": "ramp", "stops": [{"value": 1, "colour": "#000000"}]},
            },
            "output_layers.0.style.ramp.stops",
        ),
        ({"suffix": "a.tif", "name": "a", "style": {"kind": "red"}}, "output_layers.0.style"),
    ],
)
def test_layers_that_could_not_be_drawn_are_refused(layer: dict[str, Any], sentence: str) -> None:
    domain = {"urls": ["https://example.org/a.tif"]}
    with pytest.raises(InvalidRequest) as refusal:
        parse_request({"model": "m", "spatial_domain": domain, "output_layers": [layer]})
    assert sentence in str(refusal.value)
