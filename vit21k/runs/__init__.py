"""Runs on disk: progress, comparison, curves."""
