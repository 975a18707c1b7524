"""What the STAC extensions in use ask of an item, as JSON Schemas under their own addresses.

pystac carries the schemas of STAC itself, but not those of the extensions, which it fetches from
the internet. These are written from the extensions' specifications, for the fields of items.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pystac
import rasterio
from pystac.validation.stac_validator import JsonSchemaSTACValidator

BASE = "https://stac-extensions.github.io"
PROJJSON = "https://proj.org/schemas/v0.7/projjson.schema.json"
NUMBER: dict[str, Any] = {"type": "number"}
STRING: dict[str, Any] = {"type": "string"}
DATA_TYPES = [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]

PROJECTION = {
    "proj:code": {"type": ["string", "null"], "pattern": "^[A-Za-z0-9_]+:[A-Za-z0-9_.-]+$"},
    "proj:wkt2": {"type": ["string", "null"]},
    "proj:projjson": {"oneOf": [{"$ref": PROJJSON}, {"type": "null"}]},
    "proj:geometry": {"$ref": "https://geojson.org/schema/Geometry.json"},
    "proj:bbox": {"type": "array", "items": NUMBER, "minItems": 4, "maxItems": 4},
    "proj:shape": {
        "type": "array",
        "items": {"type": "integer", "minimum": 1},
        "minItems": 2,
        "maxItems": 2,
    },
    "proj:transform": {"type": "array", "items": NUMBER, "minItems": 6, "maxItems": 9},
}
RASTER = {
    "raster:sampling": {"enum": ["area", "point"]},
    "raster:bits_per_sample": {"type": "integer"},
    "raster:spatial_resolution": {"type": "number", "exclusiveMinimum": 0},
    "raster:scale": NUMBER,
    "raster:offset": NUMBER,
}
PROCESSING = {
    "processing:lineage": STRING,
    "processing:level": {"type": "string", "pattern": "^(RAW|L[0-4][A-C]?)$"},
    "processing:facility": STRING,
    "processing:version": STRING,
    "processing:datetime": {"type": "string", "format": "date-time"},
    "processing:software": {"type": "object", "additionalProperties": STRING, "minProperties": 1},
}
FILE = {
    "file:size": {"type": "integer", "minimum": 0},
    # A multihash: function sha2-256 (12), length 32 (20), digest.
    "file:checksum": {"type": "string", "pattern": "^1220[0-9a-f]{64}$"},
    "file:header_size": {"type": "integer"},
}
CLASS = {
    "type": "object",
    "required": ["value", "name"],
    "additionalProperties": False,
    "properties": {
        "value": {"type": "integer"},
        "name": {"type": "string", "pattern": "^[0-9A-Za-z_-]+$"},
        "title": STRING,
        "description": STRING,
        "color_hint": {"type": "string", "pattern": "^[0-9A-F]{6}$"},
        "nodata": {"type": "boolean"},
        "percentage": {"type": "number", "minimum": 0, "maximum": 100},
        "count": {"type": "integer", "minimum": 0},
    },
}
CLASSIFICATION = {
    "classification:classes": {
        "type": "array",
        "items": CLASS,
        "minItems": 1,
        "uniqueItems": True,
    }
}


def _extension(name: str, version: str, fields: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """A schema that takes these fields, and no others of the prefix, wherever they may stand."""
    address = f"{BASE}/{name}/v{version}/schema.json"
    prefix = next(iter(fields)).partition(":")[0]
    anywhere = {
        "type": "object",
        "properties": {
            **fields,
            "bands": {"type": "array", "items": {"$ref": "#/definitions/fields"}},
        },
        "patternProperties": {f"^(?!{prefix}:)": True},
        "additionalProperties": False,
    }
    return address, {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$id": address,
        "type": "object",
        "required": ["stac_extensions", "properties", "assets"],
        "properties": {
            "stac_extensions": {"type": "array", "contains": {"const": address}},
            "properties": {"$ref": "#/definitions/fields"},
            "assets": {
                "type": "object",
                "additionalProperties": {"$ref": "#/definitions/fields"},
            },
        },
        "definitions": {"fields": anywhere},
    }


def extension_schemas() -> dict[str, dict[str, Any]]:
    """Schemas by address, with PROJ's own for PROJJSON (GDAL's copy of it)."""
    data = Path(rasterio.__file__).parent / "proj_data" / "projjson.schema.json"
    projjson = json.loads(data.read_text("utf-8"))
    return {
        **dict(
            [
                _extension("projection", "2.0.0", PROJECTION),
                _extension("raster", "2.0.0", RASTER),
                _extension("processing", "1.2.0", PROCESSING),
                _extension("file", "2.1.0", FILE),
                _extension("classification", "2.0.0", CLASSIFICATION),
            ]
        ),
        PROJJSON: projjson,
        projjson["$id"]: projjson,
    }


def offline_validator() -> JsonSchemaSTACValidator:
    """Validates against schemas at hand."""
    validator = JsonSchemaSTACValidator()
    validator.schema_cache.update(extension_schemas())
    return validator


def valid_item(path: Path) -> dict[str, Any]:
    """The STAC item of a file, checked against STAC and all the extensions that it names."""
    document: dict[str, Any] = json.loads(path.read_text("utf-8"))
    read = pystac.Item.from_dict(document)
    assert len(read.validate(validator=offline_validator())) == 1 + len(document["stac_extensions"])
    return document
