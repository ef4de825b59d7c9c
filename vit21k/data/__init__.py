"""Manifest rows -> batches of uint8 images and sparse labels."""
