"""Publishing: archives, STAC items, styles and layers on GeoServer."""
