"""Jobs: the processing of one shard, and the publishing of one request."""

from __future__ import annotations

import dagster as dg

shard_job = dg.define_asset_job(
    "shard_job",
    selection=dg.AssetSelection.assets(
        "tiles", "predictions", "postprocessed", "processor_outputs", "shard_settled"
    ),
    description="From the scenes of one shard to its packaged outputs.",
)

publish_job = dg.define_asset_job(
    "publish_job",
    selection=dg.AssetSelection.assets("geoserver_layers"),
    description="From the packaged outputs of one request to its map layers.",
)
