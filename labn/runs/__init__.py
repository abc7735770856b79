"""Runs: from a configuration to a trained, evaluated and tracked network."""
