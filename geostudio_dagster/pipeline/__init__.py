"""What each stage does for a task, and the loop that does it for a shard. No Dagster here."""
