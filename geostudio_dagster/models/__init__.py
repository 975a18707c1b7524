"""Models: bundles on disk, the runtimes that load them, and a cache of loaded ones."""
