"""Folders of runs: what they are, how they compare; curves."""
