"""Comparison of several evaluated runs."""
