"""Weights of other programs <-> ours: files, names and layouts of tensors, addresses."""
