"""Job files for clusters: text that the cluster's own tools take as it is."""
