"""Manifests -> what other libraries read: Hugging Face datasets, Croissant, cleanlab."""
