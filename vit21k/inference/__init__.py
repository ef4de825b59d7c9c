"""Evaluate models, predict, extract features, explain."""
