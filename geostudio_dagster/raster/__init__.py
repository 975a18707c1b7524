"""Rasters: patch grids, windowed reading, masks, COG writing, mosaics and previews."""
