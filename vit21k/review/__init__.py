"""Going through doubtful labels and pairs by eye: a local page, decisions, and their use."""
