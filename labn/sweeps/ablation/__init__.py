"""Ablations: named conditions, each trained from several seeds."""
