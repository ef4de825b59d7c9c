"""Review doubtful labels and pairs in a browser, and apply the decisions."""
