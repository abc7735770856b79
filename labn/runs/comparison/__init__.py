"""The comparison of several evaluated runs."""
