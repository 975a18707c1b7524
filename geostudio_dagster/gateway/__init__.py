"""The web door: map page, layers as tiles, and the artifacts themselves."""
