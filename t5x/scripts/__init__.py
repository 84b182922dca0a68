"""Tools for checkpoints, run as `python -m t5x.scripts.NAME`."""
