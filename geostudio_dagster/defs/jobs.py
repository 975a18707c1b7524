"""Jobs: the processing of one shard, and the publishing of one request."""

from __future__ import annotations

import dagster as dg

from geostudio_dagster.defs.partitions import request_partitions, shard_partitions

shard_job = dg.define_asset_job(
    "shard_job",
    selection=["tiles", "predictions", "postprocessed", "processor_outputs", "shard_settled"],
    partitions_def=shard_partitions,
    description="From the scenes of one shard to its packaged outputs.",
)

publish_job = dg.define_asset_job(
    "publish_job",
    selection=["geoserver_layers"],
    partitions_def=request_partitions,
    description="From the packaged outputs of one request to its map layers.",
)
