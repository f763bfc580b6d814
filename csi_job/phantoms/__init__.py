"""Synthetic chest radiographs for tests, the demo and benchmarks."""
