"""Manifests -> packs: tars of prepared images for fast reading, in order or at random."""
