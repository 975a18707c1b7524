"""Dagster's side: partitions, assets, jobs, sensors, resources. Thin; the work is elsewhere."""
