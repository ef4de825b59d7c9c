"""Tar archives, read where they lie: what is in them, at which offset, and what is wrong."""
