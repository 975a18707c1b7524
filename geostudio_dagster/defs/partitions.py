"""Partition keys: a request's id, and ``<request>/<nnnnn>`` for each of its shards."""

from __future__ import annotations

import dagster as dg

from geostudio_dagster.pipeline.launches import REQUEST_PARTITIONS, SHARD_PARTITIONS

request_partitions = dg.DynamicPartitionsDefinition(name=REQUEST_PARTITIONS)
shard_partitions = dg.DynamicPartitionsDefinition(name=SHARD_PARTITIONS)
