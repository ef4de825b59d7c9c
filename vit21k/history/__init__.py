"""Folders of runs -> what they are, how far they came, how they compare; curves."""
