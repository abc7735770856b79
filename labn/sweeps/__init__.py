"""Sweeps of many runs: what a search's trials and a study's conditions share."""
