"""What `make demo` runs on: two scenes, a small model, and the requests that join them."""
