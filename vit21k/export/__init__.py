"""Manifests and models -> what other programs read."""
