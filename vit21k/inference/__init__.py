"""Checkpoint -> numbers and files."""
