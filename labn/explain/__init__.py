"""Explanation methods: maps that say which pixels made the network decide, and controls."""
