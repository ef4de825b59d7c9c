"""New manifests with other labels.  Never changes the old ones, never imports torch."""
