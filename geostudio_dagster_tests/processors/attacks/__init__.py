"""Scripts that want out: each with what must become of it."""
