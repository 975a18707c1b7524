"""Speed and memory of the engine beside its floor and beside TerraTorch: ``python -m bench``."""
