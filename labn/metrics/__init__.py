"""Metrics of predictions and of explanations; they take arrays and callables, not models."""
