"""The evaluation of one run: its scores over one subset of its data."""
