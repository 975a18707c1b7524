"""Partition keys: a request's id, and ``<request>/<nnnnn>`` for each of its shards."""

from __future__ import annotations

import dagster as dg

request_partitions = dg.DynamicPartitionsDefinition(name="requests")
shard_partitions = dg.DynamicPartitionsDefinition(name="shards")

REQUEST_TAG = "geostudio/request"
SHARD_TAG = "geostudio/shard"
# Set by the dispatcher. A run without it was launched by a person, who wants the work redone.
ATTEMPT_TAG = "geostudio/attempt"
MODEL_TAG = "geostudio/model"
OWNER_TAG = "geostudio/owner"
# A run request that carries Dagster's own tag is taken as resolved. Without it, every request
# of a tick would load all keys of the definition to look for its own.
PARTITION_TAG = "dagster/partition"
