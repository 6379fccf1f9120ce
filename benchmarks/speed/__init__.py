"""Benchmarks of speed: busray and a rival in turn, in one process. `make bench` runs them."""
