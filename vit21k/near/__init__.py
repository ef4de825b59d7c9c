"""Images that are the same to the eye: fingerprints, and the pairs among millions of them."""
