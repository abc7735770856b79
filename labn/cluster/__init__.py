"""Clusters: the files that describe them, the commands that run them, what their heads run."""
