"""Which data source a request for areas names, in GEOStudio's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from geostudio_dagster.connectors.collections import SERVED
from geostudio_dagster.stac_settings import StacSource

Document = Mapping[str, Any]


def source_named(sent: Document, model: Document) -> dict[str, str] | None:
    """Connector and collection that the request names, else those told of its model, if any."""
    for document in (sent, model):
        for field in ("model_input_data_spec", "data_connector_config"):
            for entry in document.get(field) or ():
                if not isinstance(entry, Mapping):
                    continue
                connector = entry.get("connector")
                collection = entry.get("collection") or entry.get("collection_name")
                if connector and collection and connector != SERVED:
                    return {"connector": str(connector), "collection": str(collection)}
    return None


def with_masks_of(
    sent: Document, named: Document | None, sources: Sequence[StacSource]
) -> dict[str, Any]:
    """The request with what its source tells of clouds, as if the client had sent it."""
    fitting = [
        source
        for source in sources
        if named is None
        or (source.connector, source.collection_name) == (named["connector"], named["collection"])
    ]
    if len(fitting) != 1 or not fitting[0].cloud_masking:
        return dict(sent)
    own = sent.get("data_connector_config") or ()
    masks = {"cloud_masking": fitting[0].cloud_masking}
    return {**sent, "data_connector_config": [*own, masks]}
