"""Packs: tars of preprocessed images for fast reading, sequentially or at random."""
