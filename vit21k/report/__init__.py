"""Manifests -> one HTML page: what was found, in numbers, charts and images."""
