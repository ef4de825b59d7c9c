"""Manifests -> packs: tars of prepared pictures for fast reading, in order or at random."""
