"""Batches of uint8 images and sparse labels, from manifest rows."""
