"""Readers of each layout of a data set."""
