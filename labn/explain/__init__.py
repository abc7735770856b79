"""Explanation methods: maps of the pixels that a decision depends on, and controls."""
