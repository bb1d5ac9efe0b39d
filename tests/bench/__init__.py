"""Benchmarks of the whole stack against the bounds it must reach: `python -m tests.bench`."""
