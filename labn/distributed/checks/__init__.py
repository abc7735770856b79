"""Checks of machines, nodes and cluster files."""
