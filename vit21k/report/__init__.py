"""One HTML page with the counts, charts and images of the manifests."""
