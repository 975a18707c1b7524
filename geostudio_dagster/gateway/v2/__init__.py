"""The REST API, version 2, as GEOStudio's clients know it."""
