"""Clusters: their files, the commands that start them, the tracker's server."""
