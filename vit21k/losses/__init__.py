"""Logits and sparse labels -> loss."""
