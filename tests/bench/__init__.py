"""Benchmarks, reported as ratios: `make bench` and its parts."""
