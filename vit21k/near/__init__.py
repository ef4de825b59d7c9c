"""Near-duplicates: fingerprints of images, and the near pairs among millions of them."""
