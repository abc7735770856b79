"""Benchmarks: ratios measured side by side; run with `make bench`, never as a test."""
