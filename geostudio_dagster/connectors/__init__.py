"""Bring the pixels of a task within reach: the one fetcher of remote scenes, and local ones."""
