"""Requests for areas: from a described STAC source to a layer."""
