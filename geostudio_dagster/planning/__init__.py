"""From a request to tasks and shards."""
