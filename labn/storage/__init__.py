"""Bytes: files here and elsewhere; nothing in this package knows what a run is."""
