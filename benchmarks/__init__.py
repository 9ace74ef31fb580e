"""Figures of speed and size, printed as a table with ratios: `python -m benchmarks`, or `make bench`."""
