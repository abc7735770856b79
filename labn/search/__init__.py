"""Search for the settings with the best validation scores: Ray Tune runs what Optuna draws.

The only package that imports ``ray.tune`` and ``optuna``; the command line loads it for
``labn search`` alone.
"""
