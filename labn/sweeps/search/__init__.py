"""Searches for settings, by Optuna and Ray Tune."""
